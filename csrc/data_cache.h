/* The data caches that a walker's references go through: which of them answers, so that a walk
 * costs what its references hit. It says nothing of what is read.
 *
 * A reference looks in the first level; a miss goes on to the next. What answers is the most
 * recently used line of its set there, deeper levels see nothing of it; every level that missed is
 * filled. A line that is replaced goes nowhere (no victim fill), and stays where else it is (not
 * inclusive). Set = line number mod sets. Everything starts empty. */
#ifndef VTX_DATA_CACHE_H
#define VTX_DATA_CACHE_H

#include "core.h"

enum { LINE_SHIFT = 6 };

typedef struct {
    uint64_t *lines; /* line number + 1, sets one after the other; 0: empty. LRU: newest first */
    uint64_t *trees; /* VTX_TREE_PLRU: by set, bit n is node n (root 1): 0 left, 1 right */
    uint64_t random; /* VTX_RANDOM: the generator's state */
    uint64_t sets;
    uint32_t ways; /* 0: there is no such level */
    uint32_t replacement;
} data_cache;

typedef struct {
    data_cache level[VTX_MAX_CACHES];
    uint8_t any;
} data_caches;

/* What is wrong with one level, as a sentence; NULL if nothing is. */
const char *data_cache_error(const vtx_cache *shape);
/* 0 without memory for them. */
int data_caches_init(data_caches *caches, const vtx_cache *shape);
void data_caches_free(data_caches *caches);
/* Who answers a reference to this physical address (enum vtx_hit), now and for the next time. */
enum vtx_hit data_caches_find(data_caches *caches, uint64_t address);

#endif

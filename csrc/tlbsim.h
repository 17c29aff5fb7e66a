/* TLBs of any geometry over a stream: what tlbsim.c, tlbsim_array.c and tlbsim_walk.c share.
 *
 * A TLB here is a set of tags: no frames, no rights, no invalidations, no faults. That is what
 * makes it several times as fast as the MMU's run loop, and free in its geometry. */
#ifndef VTX_TLBSIM_H
#define VTX_TLBSIM_H

#include "core.h"

/* A body that is to be made anew for every set of constant arguments. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

static const uint8_t sim_shift[3] = {12, 21, 30};

/* ---- Arrays --------------------------------------------------------------------------------- */

/* How an array is searched: by replacement, width of its tags, and ways. */
enum sim_body {
    BODY_LRU_LONG, /* many ways: search and move */
    BODY_LRU_1,
    BODY_LRU_2,
    BODY_LRU_3,
    BODY_LRU_4,
    BODY_LRU_5,
    BODY_LRU_6,
    BODY_LRU_8,
    BODY_LRU_12,
    BODY_LRU_16,
    BODY_LRU_NARROW_4, /* 32-bit tags */
    BODY_LRU_NARROW_8,
    BODY_LRU_NARROW_12,
    BODY_LRU_NARROW_16,
    BODY_TREE_PLRU,
    BODY_RANDOM
};

/* Tags of a set lie next to each other, for LRU from most to least recently used. A tag is what the
 * set leaves open of the page number (tag_shift is at most the base-2 logarithm of the number of
 * sets, whatever that is), and the size of the page where the array holds several. All ones is an
 * empty way: as a tag of 32 bits that may be a page's, too, and then the array widens its tags. */
typedef struct {
    void *tags, *spare;
    uint64_t *trees; /* tree-PLRU: bit n is node n, from 1; set: the victim is to the right */
    uint64_t reciprocal, set_mask, random;
    uint32_t sets, ways;
    uint8_t body, tag_shift, size_bits, index, power_of_two;
} sim_array;

#define SIM_EMPTY UINT64_MAX
#define SIM_EMPTY_NARROW UINT32_MAX

/* 0: no memory. An array of no ways is none at all. */
int sim_array_init(sim_array *array, const vtx_sim_array *like);
void sim_array_free(sim_array *array);
/* sim_array_touch(array, page, size), in tlbsim_array.h: look a page up and make it the most
 * recently used of its set; on a miss it takes the place of an empty way or of the victim. Returns
 * whether it was there. This is the part of it for rare bodies. */
int sim_array_touch_other(sim_array *array, uint64_t set, uint64_t tag);

/* ---- Walks ---------------------------------------------------------------------------------- */

/* Where the guest's tables lie: in order of first use, one 4-KByte frame each. */
typedef struct {
    uint64_t *keys; /* 0: free */
    uint32_t *frames;
    uint64_t mask;
    uint32_t used;
} sim_tables;

typedef struct {
    uint32_t guest_levels, ept_levels;
    sim_array guest_cache[6], ept_cache[6], nested;
    sim_tables tables;
    uint64_t table_base;
    const vtx_sim_pages *ept_pages;
    vtx_sim_counts *counts;
    int failed; /* no memory */
} sim_walker;

int sim_walker_init(sim_walker *walker, const vtx_sim_geometry *geometry, vtx_sim_counts *counts);
void sim_walker_free(sim_walker *walker);
void sim_walk(sim_walker *walker, uint64_t address, unsigned guest_size);

unsigned sim_page_size(const vtx_sim_pages *pages, uint64_t address, unsigned side);

#endif

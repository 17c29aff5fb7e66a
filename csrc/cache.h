/* Small fully associative caches with true LRU: the paging-structure caches and the nested TLB.
 *
 * A hash finds an entry, a list keeps the order of use: both take the same time whatever the
 * size. */
#ifndef VTX_CACHE_H
#define VTX_CACHE_H

#include "tlb.h"

typedef struct {
    uint64_t tag;  /* tlb_tag or cache_tag; 0: empty */
    uint64_t base; /* next table or page, host-physical */
    uint64_t gpa;  /* next table, guest-physical (guest caches) */
    uint64_t leaf; /* nested TLB: the EPT leaf; otherwise see walk_quick.c */
    uint32_t rights;
    uint32_t shift;        /* log2 of the region that the entry is for */
    uint32_t newer, older; /* neighbours in the order of use; entry 0 closes the ring */
    uint32_t chain;        /* next entry of the same hash; 0 ends */
    uint32_t pad[3];       /* 64 bytes in all */
} cache_entry;

typedef struct {
    /* 1 to count; entry 0 closes the ring: its `older` is the newest, its `newer` the oldest. */
    cache_entry *entries;
    uint32_t *heads;
    uint32_t head_shift; /* 64 - log2 of the number of heads */
    uint32_t count, used;
    uint8_t present; /* nested TLB: page sizes (1 << tlb_size) that it may hold */
} small_cache;

int cache_init(small_cache *cache, uint32_t count);
void cache_free(small_cache *cache);
/* The entry to fill: the one with this tag, or an empty one, or the least recently used. Only
 * for caches that have entries. */
cache_entry *cache_claim(small_cache *cache, uint64_t tag);
/* The same for a tag that no entry has. */
cache_entry *cache_replace(small_cache *cache, uint64_t tag);
/* Remove the entry with this tag, if there is one. */
void cache_forget(small_cache *cache, uint64_t tag);
/* Remove entries of chosen spaces: all, or those whose region holds the address. Returns how
 * many. */
uint64_t cache_remove(small_cache *cache, const tlb_space *spaces, const tlb_target *target);
void cache_mark_live(const small_cache *cache, tlb_space *spaces);

/* A tag for the region of 1 << shift bytes that holds `address`. */
static inline uint64_t cache_tag(uint64_t address, unsigned shift, uint32_t space) {
    return (address >> shift << (shift - 12)) << 19 | space;
}

static inline uint32_t *cache_head(const small_cache *cache, uint64_t tag) {
    return &cache->heads[tag * 0x9E3779B97F4A7C15ull >> cache->head_shift];
}

static inline void cache_unlink(small_cache *cache, uint32_t i) {
    cache_entry *entries = cache->entries;
    entries[entries[i].newer].older = entries[i].older;
    entries[entries[i].older].newer = entries[i].newer;
}

static inline void cache_make_newest(small_cache *cache, uint32_t i) {
    cache_entry *entries = cache->entries;
    cache_unlink(cache, i);
    entries[i].older = entries[0].older;
    entries[i].newer = 0;
    entries[entries[0].older].newer = i;
    entries[0].older = i;
}

/* The entry with this tag, now the most recently used; NULL on a miss. */
static inline cache_entry *cache_find(small_cache *cache, uint64_t tag) {
    for (uint32_t i = *cache_head(cache, tag); i; i = cache->entries[i].chain) {
        if (cache->entries[i].tag == tag) {
            cache_make_newest(cache, i);
            return &cache->entries[i];
        }
    }
    return NULL;
}

#endif

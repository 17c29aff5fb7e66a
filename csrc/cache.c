/* Small fully associative caches. See cache.h. */
#include "cache.h"

#include <stdlib.h>
#include <string.h>

int cache_init(small_cache *cache, uint32_t count) {
    unsigned bits = 1;
    memset(cache, 0, sizeof *cache);
    while (1u << bits < 2 * count)
        bits++;
    cache->count = count;
    cache->head_shift = 64 - bits;
    cache->entries = calloc(count + 1u, sizeof *cache->entries);
    cache->heads = calloc((size_t)1 << bits, sizeof *cache->heads);
    if (!cache->entries || !cache->heads)
        return 0;
    for (uint32_t i = 0; i <= count; i++) {
        cache->entries[i].older = i == count ? 0 : i + 1;
        cache->entries[i].newer = i == 0 ? count : i - 1;
    }
    return 1;
}

void cache_free(small_cache *cache) {
    free(cache->entries);
    free(cache->heads);
}

static void unchain(small_cache *cache, uint32_t i) {
    uint32_t *link = cache_head(cache, cache->entries[i].tag);
    while (*link != i)
        link = &cache->entries[*link].chain;
    *link = cache->entries[i].chain;
}

cache_entry *cache_claim(small_cache *cache, uint64_t tag) {
    cache_entry *known = cache_find(cache, tag);
    return known ? known : cache_replace(cache, tag);
}

cache_entry *cache_replace(small_cache *cache, uint64_t tag) {
    /* The oldest; empty entries are the oldest of all. */
    const uint32_t i = cache->entries[0].newer;
    cache_entry *entry = &cache->entries[i];
    if (entry->tag)
        unchain(cache, i);
    else
        cache->used++;
    uint32_t *head = cache_head(cache, tag);
    entry->tag = tag;
    entry->chain = *head;
    *head = i;
    cache_make_newest(cache, i);
    return entry;
}

static void forget(small_cache *cache, uint32_t i) {
    cache_entry *entries = cache->entries;
    unchain(cache, i);
    entries[i].tag = 0;
    cache->used--;
    cache_unlink(cache, i); /* and make it the oldest */
    entries[i].newer = entries[0].newer;
    entries[i].older = 0;
    entries[entries[0].newer].older = i;
    entries[0].newer = i;
}

void cache_forget(small_cache *cache, uint64_t tag) {
    for (uint32_t i = *cache_head(cache, tag); i; i = cache->entries[i].chain) {
        if (cache->entries[i].tag == tag) {
            forget(cache, i);
            return;
        }
    }
}

uint64_t cache_remove(small_cache *cache, const tlb_space *spaces, const tlb_target *target) {
    uint64_t removed = 0;
    if (!cache->used)
        return 0;
    for (uint32_t i = 1; i <= cache->count; i++) {
        const cache_entry *entry = &cache->entries[i];
        if (!entry->tag || !spaces[tag_space(entry->tag)].chosen)
            continue;
        const uint64_t apart = (tag_address(entry->tag) ^ target->address) << 7 >> 7;
        if (target->by_address && apart >> entry->shift)
            continue;
        forget(cache, i);
        removed++;
    }
    return removed;
}

void cache_mark_live(const small_cache *cache, tlb_space *spaces) {
    for (uint32_t i = 1; i <= cache->count; i++)
        if (cache->entries[i].tag)
            spaces[tag_space(cache->entries[i].tag)].chosen = 1;
}

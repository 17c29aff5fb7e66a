/* The data caches that a walker's references go through. See data_cache.h. */
#include "data_cache.h"

#include <stdlib.h>
#include <string.h>

const char *data_cache_error(const vtx_cache *shape) {
    const uint64_t line = 1u << LINE_SHIFT;
    if (shape->bytes == 0)
        return NULL;
    if (shape->bytes > 1ull << 30)
        return "a data cache can have at most 1 GByte";
    if (shape->ways == 0 || shape->bytes % (line * shape->ways))
        return "the bytes of a data cache must be a multiple of 64 times its ways, and the ways at "
               "least 1";
    if (shape->ways > 1024)
        return "a data cache can have at most 1024 ways";
    if (shape->replacement > VTX_RANDOM)
        return "the replacement of a data cache must be LRU, tree-PLRU or random";
    if (shape->replacement == VTX_TREE_PLRU && (shape->ways & (shape->ways - 1) || shape->ways > 64))
        return "a data cache with tree-PLRU must have 1, 2, 4, 8, 16, 32 or 64 ways";
    return NULL;
}

int data_caches_init(data_caches *caches, const vtx_cache *shape) {
    for (unsigned i = 0; i < VTX_MAX_CACHES; i++) {
        data_cache *cache = &caches->level[i];
        if (!shape[i].bytes)
            continue;
        caches->any = 1;
        cache->ways = shape[i].ways;
        cache->sets = (shape[i].bytes >> LINE_SHIFT) / cache->ways;
        cache->replacement = shape[i].replacement;
        cache->random = shape[i].seed | 1ull << 63; /* never 0 */
        cache->lines = calloc((size_t)cache->sets * cache->ways, sizeof *cache->lines);
        if (cache->replacement == VTX_TREE_PLRU)
            cache->trees = calloc((size_t)cache->sets, sizeof *cache->trees);
        if (!cache->lines || (cache->replacement == VTX_TREE_PLRU && !cache->trees))
            return 0;
    }
    return 1;
}

void data_caches_free(data_caches *caches) {
    for (unsigned i = 0; i < VTX_MAX_CACHES; i++) {
        free(caches->level[i].lines);
        free(caches->level[i].trees);
    }
}

/* On the path to a way each node is made to point away from it. */
static void touch_tree(uint64_t *tree, uint32_t ways, uint32_t way) {
    uint32_t node = 1;
    for (uint32_t half = ways / 2; half; half /= 2) {
        const uint32_t right = (way & half) != 0;
        *tree = (*tree & ~(1ull << node)) | (uint64_t)!right << node;
        node = 2 * node + right;
    }
}

static uint32_t tree_victim(uint64_t tree, uint32_t ways) {
    uint32_t node = 1;
    while (node < ways)
        node = 2 * node + (tree >> node & 1);
    return node - ways;
}

/* xorshift64, as the TLB arrays have it. */
static uint32_t random_victim(data_cache *cache) {
    cache->random ^= cache->random << 13;
    cache->random ^= cache->random >> 7;
    cache->random ^= cache->random << 17;
    return (uint32_t)((cache->random >> 32) % cache->ways);
}

/* The way that a miss fills: an empty one, or what the replacement says. */
static uint32_t way_to_fill(data_cache *cache, const uint64_t *lines, uint64_t set) {
    for (uint32_t way = 0; way < cache->ways; way++)
        if (!lines[way])
            return way;
    return cache->replacement == VTX_TREE_PLRU ? tree_victim(cache->trees[set], cache->ways)
                                               : random_victim(cache);
}

/* Is the line there? Either way it is there afterwards, as the most recently used. */
static int use_line(data_cache *cache, uint64_t line) {
    const uint64_t set = line % cache->sets;
    uint64_t *lines = cache->lines + set * cache->ways;
    const uint64_t wanted = line + 1;
    uint32_t way = 0;
    while (way < cache->ways && lines[way] != wanted)
        way++;
    const int hit = way < cache->ways;
    if (cache->replacement == VTX_LRU) {
        memmove(lines + 1, lines, (hit ? way : cache->ways - 1u) * sizeof *lines);
        lines[0] = wanted;
        return hit;
    }
    if (!hit)
        way = way_to_fill(cache, lines, set);
    lines[way] = wanted;
    if (cache->replacement == VTX_TREE_PLRU)
        touch_tree(&cache->trees[set], cache->ways, way);
    return hit;
}

enum vtx_hit data_caches_find(data_caches *caches, uint64_t address) {
    for (unsigned i = 0; i < VTX_MAX_CACHES; i++)
        if (caches->level[i].ways && use_line(&caches->level[i], address >> LINE_SHIFT))
            return (enum vtx_hit)(VTX_HIT_L1 + i);
    return VTX_HIT_MEMORY;
}

/* Arrays of a TLB: what tlbsim_array.h leaves to be called, and how an array is made. */
#include "tlbsim_array.h"

#include <stdlib.h>

/* ---- LRU over many ways --------------------------------------------------------------------- */

static int lru_long(uint64_t *tags, uint64_t tag, uint32_t ways) {
    uint32_t way = 0;
    while (way < ways && tags[way] != tag && tags[way] != SIM_EMPTY)
        way++;
    const int found = way < ways && tags[way] == tag;
    if (way == ways)
        way--;
    memmove(tags + 1, tags, way * sizeof *tags);
    tags[0] = tag;
    return found;
}

/* ---- Other replacements --------------------------------------------------------------------- */

static uint32_t search(const uint64_t *tags, uint32_t ways, uint64_t tag) {
    uint32_t way = 0;
    while (way < ways && tags[way] != tag)
        way++;
    return way;
}

/* Node 1 is the root, nodes 2n and 2n + 1 are below n, ways are the leaves. */
static uint64_t *tree_of(const sim_array *array, uint64_t set) {
    return array->trees + set * ((array->ways + 63) / 64);
}

static uint32_t tree_victim(const uint64_t *tree, uint32_t ways) {
    uint32_t node = 1;
    while (node < ways)
        node = 2 * node + (uint32_t)(tree[node / 64] >> node % 64 & 1);
    return node - ways;
}

static void tree_point_away(uint64_t *tree, uint32_t ways, uint32_t way) {
    for (uint32_t node = way + ways; node > 1; node /= 2) {
        const uint64_t bit = 1ull << node / 2 % 64;
        if (node & 1)
            tree[node / 2 / 64] &= ~bit;
        else
            tree[node / 2 / 64] |= bit;
    }
}

static int touch_tree(sim_array *array, uint64_t set, uint64_t tag) {
    uint64_t *tags = (uint64_t *)array->tags + set * array->ways;
    uint64_t *tree = tree_of(array, set);
    uint32_t way = search(tags, array->ways, tag);
    const int found = way < array->ways;
    if (!found)
        way = search(tags, array->ways, SIM_EMPTY); /* empty ways first, from the lowest */
    if (way == array->ways)
        way = tree_victim(tree, array->ways);
    tags[way] = tag;
    tree_point_away(tree, array->ways, way);
    return found;
}

/* xorshift64*, and the high bits scaled to the number of ways. */
static uint32_t random_way(sim_array *array) {
    uint64_t x = array->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    array->random = x;
    return (uint32_t)((x * 0x2545F4914F6CDD1Dull >> 32) * array->ways >> 32);
}

static int touch_random(sim_array *array, uint64_t set, uint64_t tag) {
    uint64_t *tags = (uint64_t *)array->tags + set * array->ways;
    uint32_t way = search(tags, array->ways, tag);
    if (way < array->ways)
        return 1;
    way = search(tags, array->ways, SIM_EMPTY);
    if (way == array->ways)
        way = random_way(array);
    tags[way] = tag;
    return 0;
}

/* ---- All of them ---------------------------------------------------------------------------- */

static int is_narrow(const sim_array *array) {
    return array->body >= BODY_LRU_NARROW_4 && array->body <= BODY_LRU_NARROW_16;
}

static uint8_t lru_body(uint32_t ways, int narrow) {
    switch (ways) {
    case 1: return BODY_LRU_1;
    case 2: return BODY_LRU_2;
    case 3: return BODY_LRU_3;
    case 4: return narrow ? BODY_LRU_NARROW_4 : BODY_LRU_4;
    case 5: return BODY_LRU_5;
    case 6: return BODY_LRU_6;
    case 8: return narrow ? BODY_LRU_NARROW_8 : BODY_LRU_8;
    case 12: return narrow ? BODY_LRU_NARROW_12 : BODY_LRU_12;
    case 16: return narrow ? BODY_LRU_NARROW_16 : BODY_LRU_16;
    default: return BODY_LRU_LONG;
    }
}

/* The one tag that 32 bits cannot tell from an empty way has come: go on with 64. `spare` was
 * allocated with the array, so that this cannot fail. */
static void widen(sim_array *array) {
    const uint32_t *narrow = array->tags;
    uint64_t *wide = array->spare;
    for (size_t i = 0; i < (size_t)array->sets * array->ways; i++)
        wide[i] = narrow[i] == SIM_EMPTY_NARROW ? SIM_EMPTY : narrow[i];
    array->spare = array->tags;
    array->tags = wide;
    array->body = lru_body(array->ways, 0);
}

int sim_array_touch_other(sim_array *array, uint64_t set, uint64_t tag) {
    if (is_narrow(array)) {
        widen(array);
        return lru_long((uint64_t *)array->tags + set * array->ways, tag, array->ways);
    }
    if (array->body == BODY_TREE_PLRU)
        return touch_tree(array, set, tag);
    if (array->body == BODY_RANDOM)
        return touch_random(array, set, tag);
    return lru_long((uint64_t *)array->tags + set * array->ways, tag, array->ways);
}

/* Bits of the largest page number that an array of pages of these sizes meets. */
static unsigned page_bits(uint32_t pages) {
    return pages & VTX_PAGE_4K ? 36 : pages & VTX_PAGE_2M ? 27 : 18;
}

static int allocate(sim_array *array, unsigned tag_bits, uint32_t replacement) {
    const size_t entries = (size_t)array->sets * array->ways;
    const int narrow = is_narrow(array);
    array->tags = malloc(entries * (narrow ? sizeof(uint32_t) : sizeof(uint64_t)));
    if (!array->tags)
        return 0;
    memset(array->tags, 0xFF, entries * (narrow ? sizeof(uint32_t) : sizeof(uint64_t)));
    if (narrow && tag_bits == 32 && !(array->spare = malloc(entries * sizeof(uint64_t))))
        return 0;
    if (replacement != VTX_SIM_TREE_PLRU)
        return 1;
    array->trees = calloc((size_t)array->sets * ((array->ways + 63) / 64), sizeof *array->trees);
    return array->trees != NULL;
}

int sim_array_init(sim_array *array, const vtx_sim_array *like) {
    memset(array, 0, sizeof *array);
    if (!like->ways)
        return 1; /* no entries: there is no such cache */
    array->sets = like->sets;
    array->ways = like->ways;
    array->index = (uint8_t)like->index;
    array->power_of_two = (like->sets & (like->sets - 1)) == 0;
    array->set_mask = like->sets - 1;
    array->reciprocal = UINT64_MAX / like->sets + 1;
    while (like->sets >> (array->tag_shift + 1))
        array->tag_shift++;
    array->size_bits = like->pages & (like->pages - 1) ? 2 : 0;
    const unsigned tag_bits = page_bits(like->pages) - array->tag_shift + array->size_bits;
    array->body = like->replacement == VTX_SIM_LRU         ? lru_body(like->ways, tag_bits <= 32)
                  : like->replacement == VTX_SIM_TREE_PLRU ? BODY_TREE_PLRU
                                                           : BODY_RANDOM;
    /* Any seed will do but 0, which xorshift never leaves. */
    array->random = (like->seed + 1) * 0x9E3779B97F4A7C15ull;
    if (!array->random)
        array->random = 1;
    return allocate(array, tag_bits, like->replacement);
}

void sim_array_free(sim_array *array) {
    free(array->tags);
    free(array->spare);
    free(array->trees);
}

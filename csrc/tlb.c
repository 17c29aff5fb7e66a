/* The TLBs. See tlb.h. */
#include "tlb.h"

#include <stdlib.h>
#include <string.h>

/* ---- Construction --------------------------------------------------------------------------- */

static enum tlb_order order_of(const vtx_tlb_array *shape) {
    if (shape->replacement == VTX_TREE_PLRU)
        return ORDER_TREE;
    if (shape->replacement == VTX_RANDOM)
        return ORDER_RANDOM;
    return shape->level == 2 && shape->ways <= 16 ? ORDER_NIBBLES : ORDER_STAMPS;
}

static int array_init(tlb_array *array, const vtx_tlb_array *shape) {
    array->sets = shape->entries / shape->ways;
    array->set_mask = array->sets - 1;
    array->ways = shape->ways;
    array->key_stride = (shape->ways + 3) & ~3u;
    array->level = (uint8_t)shape->level;
    array->sides = (uint8_t)shape->sides;
    array->pages = (uint8_t)shape->pages;
    array->ordered = (uint8_t)order_of(shape);
    array->random = shape->seed | 1ull << 63; /* never 0 */
    array->entries = calloc(shape->entries, sizeof *array->entries);
    array->keys = calloc((size_t)array->sets * array->key_stride, sizeof *array->keys);
    array->order = calloc(array->sets, sizeof *array->order);
    const int stamped = array->ordered == ORDER_STAMPS ||
                        (array->ordered == ORDER_RANDOM && array->level == 1);
    if (stamped)
        array->stamps = calloc(shape->entries, sizeof *array->stamps);
    if (!array->entries || !array->keys || !array->order || (stamped && !array->stamps))
        return 0;
    if (array->ordered == ORDER_NIBBLES) { /* way 0 is the first to be filled */
        uint64_t order = 0;
        for (uint32_t way = 0; way < array->ways; way++)
            order |= (uint64_t)way << 4 * (array->ways - 1 - way);
        for (uint32_t set = 0; set < array->sets; set++)
            array->order[set] = order;
    }
    return 1;
}

static void array_free(tlb_array *array) {
    free(array->entries);
    free(array->keys);
    free(array->order);
    free(array->stamps);
}

/* List, for one level and side, the arrays that take each page size. */
static void side_init(vtx_tlb *tlb, unsigned level, unsigned side) {
    tlb_side *view = &tlb->sides[level - 1][side];
    for (unsigned i = 0; i < tlb->array_count; i++) {
        tlb_array *array = &tlb->arrays[i];
        if (array->level != level || !(array->sides >> side & 1))
            continue;
        view->any = 1;
        for (unsigned size = 0; size < 3; size++)
            if (array->pages >> size & 1)
                view->array[size][view->count[size]++] = array;
    }
    /* A level that lacks a page size keeps the part of the page that was accessed, in the next
     * smaller size that it has; 0xFF: none. */
    uint8_t stored = 0xFF;
    for (unsigned size = 0; size < 3; size++) {
        if (view->count[size])
            stored = (uint8_t)size;
        view->stored_as[size] = stored;
    }
}

int tlb_init(vtx_tlb *tlb, const vtx_shape *shape) {
    tlb->spaces = calloc(SPACE_COUNT, sizeof *tlb->spaces);
    tlb->slots = calloc(SPACE_SLOTS, sizeof *tlb->slots);
    tlb->space_limit = tlb->space_cursor = 1;
    if (!tlb->spaces || !tlb->slots)
        return 0;
    for (unsigned i = 0; i < shape->array_count; i++) {
        tlb->array_count++;
        if (!array_init(&tlb->arrays[i], &shape->arrays[i]))
            return 0;
        tlb->arrays[i].clock = &tlb->clock;
        if (shape->arrays[i].level == 1 && shape->arrays[i].sides == 3)
            tlb->shared_l1 = 1;
    }
    for (unsigned level = 1; level <= 2; level++)
        for (unsigned side = 0; side < 2; side++)
            side_init(tlb, level, side);
    return 1;
}

void tlb_free(vtx_tlb *tlb) {
    for (unsigned i = 0; i < tlb->array_count; i++)
        array_free(&tlb->arrays[i]);
    free(tlb->spaces);
    free(tlb->slots);
}

/* ---- Spaces --------------------------------------------------------------------------------- */

static uint32_t space_hash(const tlb_space *key) {
    uint64_t h = key->ep4ta ^ (uint64_t)key->vpid << 48 ^ (uint64_t)key->pcid << 1 ^
                 (uint64_t)key->kind << 24 ^ key->global;
    h *= 0x9E3779B97F4A7C15ull;
    return (uint32_t)(h >> 40) & (SPACE_SLOTS - 1);
}

static int same_space(const tlb_space *a, const tlb_space *b) {
    return a->ep4ta == b->ep4ta && a->vpid == b->vpid && a->pcid == b->pcid && a->kind == b->kind &&
           a->global == b->global;
}

/* The hash slot that holds the space, or the empty one where it belongs. */
static uint32_t space_slot(const vtx_tlb *tlb, const tlb_space *key) {
    uint32_t slot = space_hash(key);
    while (tlb->slots[slot] && !same_space(&tlb->spaces[tlb->slots[slot]], key))
        slot = (slot + 1) & (SPACE_SLOTS - 1);
    return slot;
}

uint32_t tlb_space_of(vtx_tlb *tlb, const tlb_space *key) {
    const uint32_t slot = space_slot(tlb, key);
    if (tlb->slots[slot])
        return tlb->slots[slot];
    while (tlb->space_cursor < SPACE_COUNT && tlb->spaces[tlb->space_cursor].kind != SPACE_FREE)
        tlb->space_cursor++;
    if (tlb->space_cursor == SPACE_COUNT)
        return 0;
    const uint32_t number = tlb->space_cursor++;
    if (number >= tlb->space_limit)
        tlb->space_limit = number + 1;
    tlb->spaces[number] = *key;
    tlb->spaces[number].filled = 0;
    tlb->slots[slot] = number;
    return number;
}

void tlb_mark_live(vtx_tlb *tlb) {
    for (uint32_t i = 0; i < tlb->space_limit; i++)
        tlb->spaces[i].chosen = 0;
    for (unsigned i = 0; i < tlb->array_count; i++) {
        const tlb_array *array = &tlb->arrays[i];
        const uint64_t count = (uint64_t)array->sets * array->ways;
        for (uint64_t e = 0; e < count; e++)
            tlb->spaces[tag_space(array->entries[e].tag)].chosen = 1;
    }
}

void tlb_sweep_spaces(vtx_tlb *tlb) {
    uint32_t limit = 1;
    memset(tlb->slots, 0, SPACE_SLOTS * sizeof *tlb->slots);
    for (uint32_t i = 1; i < tlb->space_limit; i++) {
        tlb_space *space = &tlb->spaces[i];
        if (!space->chosen) {
            memset(space, 0, sizeof *space);
            continue;
        }
        tlb->slots[space_slot(tlb, space)] = i;
        limit = i + 1;
    }
    tlb->space_limit = limit;
    tlb->space_cursor = 1;
}

/* ---- Replacement ---------------------------------------------------------------------------- */

/* A tree over the ways: on the path to a way, each node is made to point away from it. */
void tlb_touch_tree(tlb_array *array, uint64_t set, uint32_t way) {
    uint64_t tree = array->order[set];
    uint32_t node = 1;
    for (uint32_t half = array->ways / 2; half; half /= 2) {
        const uint32_t right = (way & half) != 0;
        tree = (tree & ~(1ull << node)) | (uint64_t)!right << node;
        node = 2 * node + right;
    }
    array->order[set] = tree;
}

static uint32_t tree_victim(const tlb_array *array, uint64_t set) {
    const uint64_t tree = array->order[set];
    uint32_t node = 1;
    while (node < array->ways)
        node = 2 * node + (tree >> node & 1);
    return node - array->ways;
}

/* xorshift64: the same numbers from the same seed on every system. */
static uint32_t random_victim(tlb_array *array) {
    array->random ^= array->random << 13;
    array->random ^= array->random >> 7;
    array->random ^= array->random << 17;
    return (uint32_t)((array->random >> 32) % array->ways);
}

/* The way to fill: an empty one (both LRU orders keep those last), or the one to be replaced. */
static uint32_t victim_of(tlb_array *array, uint64_t set) {
    if (array->ordered == ORDER_NIBBLES)
        return array->order[set] >> 4 * (array->ways - 1) & 15;
    if (array->ordered == ORDER_STAMPS)
        return tlb_oldest(array, set);
    for (uint32_t way = 0; way < array->ways; way++)
        if (!array->entries[set * array->ways + way].tag)
            return way;
    return array->ordered == ORDER_TREE ? tree_victim(array, set) : random_victim(array);
}

/* Empty one way: it becomes the first to be filled. */
static void remove_way(tlb_array *array, uint64_t set, uint32_t way) {
    array->entries[set * array->ways + way] = (tlb_entry){0, 0};
    array->keys[set * array->key_stride + way] = 0;
    if (array->ordered == ORDER_STAMPS)
        array->stamps[set * array->ways + way] = 0;
    if (array->ordered != ORDER_NIBBLES)
        return;
    const uint64_t order = array->order[set];
    const unsigned at = nibble_position(order, way);
    const uint64_t newer = (1ull << at) - 1;
    const uint64_t older = order >> at >> 4 << at; /* one place forward; 0 comes in at the end */
    array->order[set] = (order & newer) | older | (uint64_t)way << 4 * (array->ways - 1);
}

/* ---- Lookup and fill ------------------------------------------------------------------------ */

/* The set that holds page `va` in what the side has for pages of `size`. Several arrays for one
 * size share its pages out by the low bits of the page number. */
static inline uint64_t set_of(const tlb_side *side, unsigned size, uint64_t va,
                              tlb_array **array) {
    uint64_t page = va >> size_shift[size];
    unsigned which = 0;
    if (side->count[size] > 1) {
        which = (unsigned)(page % side->count[size]);
        page /= side->count[size];
    }
    *array = side->array[size][which];
    return page & (*array)->set_mask;
}

tlb_entry *tlb_find(const tlb_side *side, uint64_t va, uint32_t space, uint32_t global) {
    for (unsigned size = 0; size < 3; size++) {
        if (!side->count[size])
            continue;
        tlb_array *array;
        const uint64_t set = set_of(side, size, va, &array);
        if (!(array->present >> size & 1))
            continue;
        const uint64_t tag = tlb_tag(va, (enum tlb_size)size, space);
        const uint32_t way = tlb_search(array, set, tag, tag ^ space ^ global);
        if (way == array->ways)
            continue;
        tlb_touch(array, set, way);
        return &array->entries[set * array->ways + way];
    }
    return NULL;
}

/* The payload of the part of a page that a level keeps where it lacks the page's size. */
static uint64_t part_of(uint64_t payload, uint64_t va, unsigned size, unsigned stored) {
    if (stored == size)
        return payload;
    const uint64_t within = (1ull << size_shift[size]) - (1ull << size_shift[stored]);
    return payload | (va & within);
}

tlb_entry *tlb_fill(vtx_tlb *tlb, const tlb_side *side, uint64_t va, enum tlb_size size, uint32_t space,
                    uint64_t payload) {
    const unsigned stored = side->stored_as[size];
    if (stored == 0xFF)
        return NULL;
    tlb_array *array;
    tlb->large |= stored > 0;
    const uint64_t set = set_of(side, stored, va, &array);
    const uint64_t tag = tlb_tag(va, (enum tlb_size)stored, space);
    const uint32_t way = victim_of(array, set);
    array->present |= (uint8_t)(1u << stored);
    return tlb_put(array, set, way, tag, part_of(payload, va, size, stored));
}

tlb_entry *tlb_update(const tlb_side *side, uint64_t va, enum tlb_size size, uint32_t space,
                      uint64_t payload) {
    const unsigned stored = side->stored_as[size];
    if (stored == 0xFF)
        return NULL;
    tlb_array *array;
    const uint64_t set = set_of(side, stored, va, &array);
    const uint64_t tag = tlb_tag(va, (enum tlb_size)stored, space);
    const uint32_t way = tlb_search(array, set, tag, tag);
    if (way == array->ways)
        return NULL;
    tlb_entry *entry = &array->entries[set * array->ways + way];
    entry->payload = part_of(payload, va, size, stored);
    return entry;
}

/* ---- Invalidation --------------------------------------------------------------------------- */

/* Remove from one set what the target names, keeping the order of the rest. */
static uint32_t remove_from_set(tlb_array *array, uint64_t set, const tlb_space *spaces,
                                const tlb_target *target) {
    uint32_t removed = 0;
    for (uint32_t way = 0; way < array->ways; way++) {
        const tlb_entry entry = array->entries[set * array->ways + way];
        if (!entry.tag || !spaces[tag_space(entry.tag)].chosen ||
            (target->by_address && !tlb_entry_covers(entry.tag, entry.payload, target->address)))
            continue;
        remove_way(array, set, way);
        removed++;
    }
    return removed;
}

void tlb_forget(vtx_tlb *tlb, uint64_t va, uint32_t space, uint32_t global) {
    for (unsigned level = 0; level < 2; level++) {
        for (unsigned which = 0; which < 2; which++) {
            const tlb_side *side = &tlb->sides[level][which];
            for (unsigned size = 0; size < 3; size++) {
                if (!side->count[size])
                    continue;
                tlb_array *array;
                const uint64_t set = set_of(side, size, va, &array);
                const uint64_t tag = tlb_tag(va, (enum tlb_size)size, space);
                uint32_t way;
                while ((way = tlb_search(array, set, tag, tag ^ space ^ global)) < array->ways)
                    remove_way(array, set, way);
            }
        }
    }
}

uint64_t tlb_remove(vtx_tlb *tlb, const tlb_target *target) {
    uint64_t removed = 0;
    for (unsigned i = 0; i < tlb->array_count; i++) {
        tlb_array *array = &tlb->arrays[i];
        if (!array->present)
            continue;
        for (uint32_t set = 0; set < array->sets; set++)
            removed += remove_from_set(array, set, tlb->spaces, target);
    }
    return removed;
}

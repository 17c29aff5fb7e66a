/* The TLBs. See tlb.h. */
#include "tlb.h"

#include <stdlib.h>
#include <string.h>

/* ---- Construction --------------------------------------------------------------------------- */

static int array_init(tlb_array *array, const vtx_tlb_array *shape) {
    array->sets = shape->entries / shape->ways;
    array->set_mask = array->sets - 1;
    array->ways = shape->ways;
    array->level = (uint8_t)shape->level;
    array->sides = (uint8_t)shape->sides;
    array->pages = (uint8_t)shape->pages;
    array->entries = calloc(shape->entries, sizeof *array->entries);
    return array->entries != NULL;
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
        if (!array_init(&tlb->arrays[i], &shape->arrays[i]))
            return 0;
        tlb->array_count++;
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
        free(tlb->arrays[i].entries);
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

/* ---- Lookup and fill ------------------------------------------------------------------------ */

/* The set of `array` list `size` that holds page `va`. Several arrays for one size share its pages
 * out by the low bits of the page number. */
static inline tlb_entry *set_of(const tlb_side *side, unsigned size, uint64_t va,
                                tlb_array **array) {
    uint64_t page = va >> size_shift[size];
    unsigned which = 0;
    if (side->count[size] > 1) {
        which = (unsigned)(page % side->count[size]);
        page /= side->count[size];
    }
    *array = side->array[size][which];
    return (*array)->entries + (page & (*array)->set_mask) * (*array)->ways;
}

tlb_entry *tlb_find(const tlb_side *side, uint64_t va, uint32_t space, uint32_t global) {
    for (unsigned size = 0; size < 3; size++) {
        if (!side->count[size])
            continue;
        tlb_array *array;
        tlb_entry *set = set_of(side, size, va, &array);
        if (!(array->present >> size & 1))
            continue;
        const uint64_t tag = tlb_tag(va, (enum tlb_size)size, space);
        const uint32_t way = tlb_search(set, array->ways, tag, tag ^ space ^ global);
        if (way == array->ways)
            continue;
        if (way)
            tlb_move_to_front(set, way, set[way]);
        return set;
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

tlb_entry *tlb_fill(const tlb_side *side, uint64_t va, enum tlb_size size, uint32_t space,
                    uint64_t payload) {
    const unsigned stored = side->stored_as[size];
    if (stored == 0xFF)
        return NULL;
    tlb_array *array;
    tlb_entry *set = set_of(side, stored, va, &array);
    tlb_entry entry = {tlb_tag(va, (enum tlb_size)stored, space),
                       part_of(payload, va, size, stored)};
    array->present |= (uint8_t)(1u << stored);
    tlb_move_to_front(set, array->ways - 1, entry);
    return set;
}

tlb_entry *tlb_update(const tlb_side *side, uint64_t va, enum tlb_size size, uint32_t space,
                      uint64_t payload) {
    const unsigned stored = side->stored_as[size];
    if (stored == 0xFF)
        return NULL;
    tlb_array *array;
    tlb_entry *set = set_of(side, stored, va, &array);
    const uint64_t tag = tlb_tag(va, (enum tlb_size)stored, space);
    const uint32_t way = tlb_search(set, array->ways, tag, tag);
    if (way == array->ways)
        return NULL;
    set[way].payload = part_of(payload, va, size, stored);
    return &set[way];
}

/* ---- Invalidation --------------------------------------------------------------------------- */

/* Remove from one set what the target names, keeping the LRU order of the rest. */
static uint32_t remove_from_set(tlb_entry *set, uint32_t ways, const tlb_space *spaces,
                                const tlb_target *target) {
    uint32_t kept = 0;
    uint32_t way = 0;
    for (; way < ways && set[way].tag; way++) {
        const tlb_entry entry = set[way];
        const int gone =
            spaces[tag_space(entry.tag)].chosen &&
            (!target->by_address || tlb_entry_covers(entry.tag, entry.payload, target->address));
        if (!gone)
            set[kept++] = entry;
    }
    const uint32_t removed = way - kept;
    memset(set + kept, 0, removed * sizeof *set);
    return removed;
}

static void forget_way(tlb_entry *set, uint32_t ways, uint32_t way) {
    for (; way + 1 < ways; way++)
        set[way] = set[way + 1];
    set[ways - 1] = (tlb_entry){0, 0};
}

void tlb_forget(vtx_tlb *tlb, uint64_t va, uint32_t space, uint32_t global) {
    for (unsigned level = 0; level < 2; level++) {
        for (unsigned which = 0; which < 2; which++) {
            const tlb_side *side = &tlb->sides[level][which];
            for (unsigned size = 0; size < 3; size++) {
                if (!side->count[size])
                    continue;
                tlb_array *array;
                tlb_entry *set = set_of(side, size, va, &array);
                const uint64_t tag = tlb_tag(va, (enum tlb_size)size, space);
                uint32_t way;
                while ((way = tlb_search(set, array->ways, tag, tag ^ space ^ global)) <
                       array->ways)
                    forget_way(set, array->ways, way);
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
            removed += remove_from_set(array->entries + (uint64_t)set * array->ways, array->ways,
                                       tlb->spaces, target);
    }
    return removed;
}

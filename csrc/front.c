/* The run loop's first look. See `run_front` in mmu.h. */
#include "mmu.h"

#include <stdlib.h>

/* The one first-level array that holds pages of a size for a side, if a hit in it takes no more
 * than a stamp; else NULL. */
static tlb_array *array_of(const vtx_mmu *mmu, unsigned side, unsigned size) {
    const tlb_side *l1 = &mmu->tlb.sides[0][side];
    if (l1->count[size] != 1)
        return NULL;
    tlb_array *array = l1->array[size][0];
    return array->stamps && (uint64_t)array->sets * array->ways <= FRONT_ENTRIES ? array : NULL;
}

static void set_side(vtx_mmu *mmu, unsigned side) {
    run_front *front = &mmu->front;
    const unsigned size = front->size[side];
    front->array[side] = mmu->identity ? NULL : array_of(mmu, side, size);
    for (uint32_t kind = 0; kind < 4; kind++) {
        if ((kind == VTX_FETCH) == (side == 1))
            continue;
        front->base[kind] = front->slots + side * (size_t)FRONT_SLOTS;
        front->compared[kind] = ~15ull | 1ull << kind;
        front->passed[kind] = 1ull << 16 * kind;
        front->page_mask[kind] = 0x0000FFFFFFFFFFFFull >> size_shift[size] << size_shift[size];
        front->shift[kind] = size_shift[size];
    }
}

int front_init(vtx_mmu *mmu) {
    run_front *front = &mmu->front;
    front->slots = calloc(2 * (size_t)FRONT_SLOTS, sizeof *front->slots);
    front->slot_of[0] = calloc(2 * (size_t)FRONT_ENTRIES, sizeof *front->slot_of[0]);
    if (!front->slots || !front->slot_of[0])
        return 0;
    front->slot_of[1] = front->slot_of[0] + FRONT_ENTRIES;
    return 1;
}

void front_free(vtx_mmu *mmu) {
    free(mmu->front.slots);
    free(mmu->front.slot_of[0]);
}

static void set_simple(vtx_mmu *mmu, unsigned side) {
    const run_front *front = &mmu->front;
    const tlb_side *l2 = &mmu->tlb.sides[1][side];
    tlb_array *l1 = front->array[side];
    vtx_counters *c = &mmu->counters;
    front_simple *simple = &mmu->front.simple[side];
    *simple = (front_simple){.l1 = NULL};
    if (!l1 || front->size[side] != SIZE_4K || front->array[0] == front->array[1] ||
        l1->ordered != ORDER_STAMPS || l2->count[0] != 1 ||
        l2->array[0][0]->ordered != ORDER_NIBBLES || mmu->keys_on ||
        mmu->guest.paging != PAGING_4LEVEL)
        return;
    *simple = side ? (front_simple){l1, l2->array[0][0], &c->l1d_hits, &c->l1d_misses,
                                    &c->l2d_hits, &c->l2d_misses}
                   : (front_simple){l1, l2->array[0][0], &c->l1i_hits, &c->l1i_misses,
                                    &c->l2i_hits, &c->l2i_misses};
}

void front_forget(vtx_mmu *mmu) {
    run_front *front = &mmu->front;
    front->key += FRONT_KEY;
    if (front->key > FRONT_KEYS * FRONT_KEY) { /* all were used: clear what bears them */
        memset(front->slots, 0, 2 * (size_t)FRONT_SLOTS * sizeof *front->slots);
        front->key = FRONT_KEY;
    }
    set_side(mmu, 0);
    set_side(mmu, 1);
    set_simple(mmu, 0);
    set_simple(mmu, 1);
}

/* Another page may have been in this entry: the front no longer knows it. */
static void clear_entry(run_front *front, const tlb_entry *entry) {
    for (unsigned side = 0; side < 2; side++) {
        const tlb_array *array = front->array[side];
        if (!array || entry < array->entries)
            continue;
        const size_t number = (size_t)(entry - array->entries);
        if (number >= (size_t)array->sets * array->ways)
            continue;
        front_slot *slot = &front->slots[side * FRONT_SLOTS + front->slot_of[side][number]];
        if (slot->stamp == &array->stamps[number])
            slot->word = 0;
    }
}

/* Pages of another size than the front's: after a few in a row it turns to them. */
static void misfit(vtx_mmu *mmu, unsigned side, unsigned size) {
    if (++mmu->front.misfits[side] < 4)
        return;
    mmu->front.misfits[side] = 0;
    mmu->front.size[side] = (uint8_t)size;
    front_forget(mmu);
}

/* The page of `gva` is in this entry of the front's array. */
static inline void set_page(vtx_mmu *mmu, uint32_t kind, uint64_t gva, const tlb_entry *entry) {
    run_front *front = &mmu->front;
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    const tlb_array *array = front->array[side];
    const size_t number = (size_t)(entry - array->entries);
    const size_t slot = gva >> front->shift[kind] & (FRONT_SLOTS - 1);
    uint64_t word = (gva & front->page_mask[kind]) | front->key;
    if (side == 0) {
        word |= !mmu_allows(mmu, entry->payload, VTX_FETCH);
    } else {
        word |= (uint64_t)!mmu_allows(mmu, entry->payload, VTX_LOAD) << VTX_LOAD |
                (uint64_t)!mmu_allows(mmu, entry->payload, VTX_STORE) << VTX_STORE |
                (uint64_t)!mmu_allows(mmu, entry->payload, VTX_MODIFY) << VTX_MODIFY;
    }
    front->base[kind][slot] = (front_slot){word, &array->stamps[number]};
    front->slot_of[side][number] = (uint8_t)slot;
}

/* The page is in entry `number` of the first-level array. */
static inline void simple_page(vtx_mmu *mmu, const front_simple *simple, unsigned side,
                               uint64_t gva, size_t number, uint64_t payload) {
    run_front *front = &mmu->front;
    front_slot *slots = front->slots + side * (size_t)FRONT_SLOTS;
    const size_t slot = gva >> 12 & (FRONT_SLOTS - 1);
    uint64_t word = (gva & 0x0000FFFFFFFFF000ull) | front->key;
    if (side == 0)
        word |= (uint64_t)!rights_allow(mmu, payload, VTX_FETCH);
    else
        word |= (uint64_t)!rights_allow(mmu, payload, VTX_LOAD) << VTX_LOAD |
                (uint64_t)!rights_allow(mmu, payload, VTX_STORE) << VTX_STORE |
                (uint64_t)!rights_allow(mmu, payload, VTX_MODIFY) << VTX_MODIFY;
    slots[slot] = (front_slot){word, &simple->l1->stamps[number]};
    front->slot_of[side][number] = (uint8_t)slot;
}

/* What the second level or a walk says of a page that the first level lacks; the second level has it
 * then. 0, and nothing done, where that takes a decision. */
static inline int simple_second(vtx_mmu *mmu, const front_simple *simple, uint32_t kind,
                                uint64_t gva, uint64_t *tag, uint64_t *payload) {
    tlb_array *l2 = simple->l2;
    const uint64_t set = gva >> 12 & l2->set_mask;
    const uint64_t order = l2->order[set];
    const uint64_t other = *tag ^ mmu->space ^ mmu->global_space;
    uint32_t way = tlb_search(l2, set, *tag, other);
    if (way < l2->ways) {
        const tlb_entry *entry = &l2->entries[set * l2->ways + way];
        if (!rights_allow(mmu, entry->payload, kind))
            return 0;
        *payload = entry->payload;
        *tag = entry->tag;
        l2->order[set] = nibble_to_front(order, way);
        ++*simple->l2_hits;
        return 1;
    }
    if (!walk_for_miss(mmu, gva, kind, payload))
        return 0;
    if (*payload >> PAYLOAD_GLOBAL_SHIFT & 1)
        *tag = other;
    const unsigned last = 4 * (l2->ways - 1);
    way = order >> last & 15;
    l2->present |= 1u << SIZE_4K;
    l2->keys[set * l2->key_stride + way] = tlb_key(*tag);
    l2->entries[set * l2->ways + way] = (tlb_entry){*tag, *payload};
    l2->order[set] = (order & ((1ull << last) - 1)) << 4 | way;
    ++*simple->l2_misses;
    return 1;
}

/* An access where that is simple: only 4-KByte pages anywhere, LRU arrays, a walk that takes no
 * decision. 0, and nothing done, where it is not. */
static inline int simple_find(vtx_mmu *mmu, uint32_t kind, uint64_t gva) {
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    const front_simple *simple = &mmu->front.simple[side];
    tlb_array *l1 = simple->l1;
    if (!l1 || mmu->tlb.large)
        return 0;
    const uint64_t set = gva >> 12 & l1->set_mask;
    uint64_t tag = tlb_tag(gva, SIZE_4K, mmu->space);
    uint32_t way = tlb_search(l1, set, tag, tag ^ mmu->space ^ mmu->global_space);
    size_t number = set * l1->ways + way;
    if (way < l1->ways) {
        if (!rights_allow(mmu, l1->entries[number].payload, kind))
            return 0;
        ++*simple->l1_hits;
    } else {
        uint64_t payload;
        if (!simple_second(mmu, simple, kind, gva, &tag, &payload))
            return 0;
        ++*simple->l1_misses;
        way = tlb_oldest(l1, set);
        number = set * l1->ways + way;
        l1->present |= 1u << SIZE_4K;
        l1->keys[set * l1->key_stride + way] = tlb_key(tag);
        l1->entries[number] = (tlb_entry){tag, payload};
        front_slot *slot = &mmu->front.slots[side * FRONT_SLOTS + mmu->front.slot_of[side][number]];
        /* The page that was there. Not a branch: often is as likely as not. */
        slot->word &= 0 - (uint64_t)(slot->stamp != &l1->stamps[number]);
    }
    l1->stamps[number] = ++mmu->tlb.clock;
    simple_page(mmu, simple, side, gva, number, l1->entries[number].payload);
    return 1;
}

int front_find(vtx_mmu *mmu, uint32_t kind, uint64_t gva) {
    if (simple_find(mmu, kind, gva))
        return 1;
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    tlb_array *array = mmu->front.array[side];
    if (!array || (gva & ~mmu->guest.linear_mask))
        return 0;
    const unsigned size = mmu->front.size[side];
    const uint64_t set = gva >> size_shift[size] & array->set_mask;
    const uint64_t tag = tlb_tag(gva, (enum tlb_size)size, mmu->space);
    const uint32_t way = tlb_search(array, set, tag, tag ^ mmu->space ^ mmu->global_space);
    if (way == array->ways)
        return 0;
    const tlb_entry *entry = &array->entries[set * array->ways + way];
    if (!mmu_allows(mmu, entry->payload, kind))
        return 0;
    tlb_touch(array, set, way);
    ++*(side ? &mmu->counters.l1d_hits : &mmu->counters.l1i_hits);
    set_page(mmu, kind, gva, entry);
    return 1;
}

void front_note(vtx_mmu *mmu, uint32_t kind, uint64_t gva, const tlb_entry *entry) {
    run_front *front = &mmu->front;
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    if (!entry)
        return;
    clear_entry(front, entry);
    const unsigned size = tag_size(entry->tag);
    if (size != front->size[side] || !front->array[side]) {
        misfit(mmu, side, size);
        return;
    }
    front->misfits[side] = 0;
    set_page(mmu, kind, gva, entry);
}

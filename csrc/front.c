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

void front_forget(vtx_mmu *mmu) {
    run_front *front = &mmu->front;
    front->key += FRONT_KEY;
    if (front->key > FRONT_KEYS * FRONT_KEY) { /* all were used: clear what bears them */
        memset(front->slots, 0, 2 * (size_t)FRONT_SLOTS * sizeof *front->slots);
        front->key = FRONT_KEY;
    }
    set_side(mmu, 0);
    set_side(mmu, 1);
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

/* The second-level array for 4-KByte pages, if it is the only one and has the usual order. */
static inline tlb_array *simple_second(const vtx_mmu *mmu, unsigned side) {
    const tlb_side *l2 = &mmu->tlb.sides[1][side];
    return l2->count[0] == 1 && l2->array[0][0]->ordered == ORDER_NIBBLES ? l2->array[0][0] : NULL;
}

/* An access that misses the first level, where that is simple: only 4-KByte pages anywhere, LRU
 * arrays, a walk that takes no decision. 0, and nothing done, where it is not. */
static int front_miss(vtx_mmu *mmu, uint32_t kind, uint64_t gva) {
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    tlb_array *l1 = mmu->front.array[side];
    tlb_array *l2 = simple_second(mmu, side);
    if (!l1 || !l2 || l1->ordered != ORDER_STAMPS || mmu->tlb.large || mmu->keys_on ||
        mmu->front.size[side] != SIZE_4K || mmu->guest.paging != PAGING_4LEVEL)
        return 0;
    const uint64_t set = gva >> 12 & l2->set_mask;
    uint64_t tag = tlb_tag(gva, SIZE_4K, mmu->space);
    const uint32_t way = tlb_search(l2, set, tag, tag ^ mmu->space ^ mmu->global_space);
    uint64_t payload;
    if (way < l2->ways) {
        const tlb_entry *entry = &l2->entries[set * l2->ways + way];
        if (!rights_allow(mmu, entry->payload, kind))
            return 0;
        payload = entry->payload;
        tag = entry->tag;
        l2->order[set] = nibble_to_front(l2->order[set], way);
        ++*(side ? &mmu->counters.l2d_hits : &mmu->counters.l2i_hits);
    } else {
        if (!walk_for_miss(mmu, gva, kind, &payload))
            return 0;
        if (payload >> PAYLOAD_GLOBAL_SHIFT & 1)
            tag ^= mmu->space ^ mmu->global_space;
        l2->present |= 1u << SIZE_4K;
        tlb_put(l2, set, (uint32_t)(l2->order[set] >> 4 * (l2->ways - 1) & 15), tag, payload);
        ++*(side ? &mmu->counters.l2d_misses : &mmu->counters.l2i_misses);
    }
    ++*(side ? &mmu->counters.l1d_misses : &mmu->counters.l1i_misses);
    const uint64_t first = gva >> 12 & l1->set_mask;
    l1->present |= 1u << SIZE_4K;
    const tlb_entry *entry = tlb_put(l1, first, tlb_oldest(l1, first), tag, payload);
    clear_entry(&mmu->front, entry);
    set_page(mmu, kind, gva, entry);
    return 1;
}

int front_find(vtx_mmu *mmu, uint32_t kind, uint64_t gva) {
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    tlb_array *array = mmu->front.array[side];
    if (!array || (gva & ~mmu->guest.linear_mask))
        return 0;
    const unsigned size = mmu->front.size[side];
    const uint64_t set = gva >> size_shift[size] & array->set_mask;
    const uint64_t tag = tlb_tag(gva, (enum tlb_size)size, mmu->space);
    const uint32_t way = tlb_search(array, set, tag, tag ^ mmu->space ^ mmu->global_space);
    if (way == array->ways)
        return front_miss(mmu, kind, gva);
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

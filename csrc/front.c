/* The run loop's first look. See `run_front` in mmu.h. */
#include "mmu.h"

#include <stdlib.h>

/* The one first-level array that holds pages of a size for a side; NULL if there is none, or
 * several. */
static tlb_array *array_of(const vtx_mmu *mmu, unsigned side, unsigned size) {
    const tlb_side *l1 = &mmu->tlb.sides[0][side];
    return l1->count[size] == 1 && l1->array[size][0]->sets <= FRONT_SETS ? l1->array[size][0]
                                                                          : NULL;
}

static uint32_t sets_of(const vtx_mmu *mmu, unsigned side) {
    uint32_t sets = 1;
    for (unsigned size = 0; size < 3; size++) {
        const tlb_array *array = array_of(mmu, side, size);
        if (array && array->sets > sets)
            sets = array->sets;
    }
    return sets;
}

/* First and last kind of access of a side. */
static const uint32_t first_kind[2] = {VTX_FETCH, VTX_LOAD};
static const uint32_t last_kind[2] = {VTX_FETCH, VTX_MODIFY};

static void set_side(vtx_mmu *mmu, unsigned side) {
    run_front *front = &mmu->front;
    const unsigned size = front->size[side];
    tlb_array *array = array_of(mmu, side, size);
    front->array[side] = array;
    for (uint32_t kind = first_kind[side]; kind <= last_kind[side]; kind++) {
        front->shift[kind] = size_shift[size];
        front->page_mask[kind] = 0x0000FFFFFFFFFFFFull >> size_shift[size] << size_shift[size];
        front->set_mask[kind] = array ? array->set_mask : 0;
    }
}

int front_init(vtx_mmu *mmu) {
    run_front *front = &mmu->front;
    const size_t sets[2] = {sets_of(mmu, 0), sets_of(mmu, 1)};
    front->all_pages = calloc(sets[0] + 3 * sets[1], sizeof *front->all_pages);
    if (!front->all_pages)
        return 0;
    front->pages[VTX_FETCH] = front->all_pages;
    for (uint32_t kind = VTX_LOAD; kind <= VTX_MODIFY; kind++)
        front->pages[kind] = front->all_pages + sets[0] + (kind - 1) * sets[1];
    return 1;
}

void front_forget(vtx_mmu *mmu) {
    if (++mmu->front.key > FRONT_KEYS) { /* every key was used: clear what bears them */
        const size_t count = sets_of(mmu, 0) + 3 * (size_t)sets_of(mmu, 1);
        memset(mmu->front.all_pages, 0, count * sizeof *mmu->front.all_pages);
        mmu->front.key = 1;
    }
    set_side(mmu, 0);
    set_side(mmu, 1);
}

/* Pages of another size than the front's: after a few in a row it turns to them. */
static void misfit(vtx_mmu *mmu, unsigned side, unsigned size, uint64_t gva) {
    const tlb_array *array = mmu->front.array[side];
    if (array && array->pages >> size & 1) { /* the same array: it may have pushed a page back */
        const uint64_t set = gva >> size_shift[size] & array->set_mask;
        for (uint32_t kind = first_kind[side]; kind <= last_kind[side]; kind++)
            mmu->front.pages[kind][set] = 0;
    }
    if (++mmu->front.misfits[side] < 4)
        return;
    mmu->front.misfits[side] = 0;
    mmu->front.size[side] = (uint8_t)size;
    front_forget(mmu);
}

/* Say that the page of `gva` is the most recently used of its set. */
static inline void set_pages(vtx_mmu *mmu, unsigned side, uint64_t gva, uint64_t payload) {
    run_front *front = &mmu->front;
    const uint32_t kind = first_kind[side];
    const uint64_t set = gva >> front->shift[kind] & front->set_mask[kind];
    const uint64_t page = (gva & front->page_mask[kind]) | front->key;
    if (side == 0) {
        front->pages[VTX_FETCH][set] = mmu_allows(mmu, payload, VTX_FETCH) ? page : 0;
        return;
    }
    front->pages[VTX_LOAD][set] = mmu_allows(mmu, payload, VTX_LOAD) ? page : 0;
    front->pages[VTX_STORE][set] = mmu_allows(mmu, payload, VTX_STORE) ? page : 0;
    front->pages[VTX_MODIFY][set] = mmu_allows(mmu, payload, VTX_MODIFY) ? page : 0;
}

int front_find(vtx_mmu *mmu, uint32_t kind, uint64_t gva) {
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    const tlb_array *array = mmu->front.array[side];
    if (!array || mmu->tlb.shared_l1 || mmu->identity || (gva & ~mmu->guest.linear_mask))
        return 0;
    const unsigned size = mmu->front.size[side];
    tlb_entry *set =
        array->entries + (gva >> size_shift[size] & array->set_mask) * (size_t)array->ways;
    const uint64_t tag = tlb_tag(gva, (enum tlb_size)size, mmu->space);
    const uint32_t way = tlb_search(set, array->ways, tag, tag ^ mmu->space ^ mmu->global_space);
    if (way == array->ways || !mmu_allows(mmu, set[way].payload, kind))
        return 0;
    tlb_move_to_front(set, way, set[way]);
    ++*(side ? &mmu->counters.l1d_hits : &mmu->counters.l1i_hits);
    set_pages(mmu, side, gva, set[0].payload);
    return 1;
}

void front_note(vtx_mmu *mmu, uint32_t kind, uint64_t gva, const tlb_entry *entry) {
    run_front *front = &mmu->front;
    const unsigned side = kind == VTX_FETCH ? 0 : 1;
    if (!entry)
        return;
    const unsigned size = tag_size(entry->tag);
    if (mmu->tlb.shared_l1) /* the sides push each other's pages back */
        front_forget(mmu);
    if (size != front->size[side] || !front->array[side]) {
        misfit(mmu, side, size, gva);
        return;
    }
    front->misfits[side] = 0;
    set_pages(mmu, side, gva, entry->payload);
}

/* Translation through the TLBs, and the calls that Python makes for one or many addresses. */
#include "mmu.h"

#include <string.h>

static void count_lookup(vtx_mmu *mmu, unsigned side, int l1_hit, int l2_hit) {
    vtx_counters *counters = &mmu->counters;
    uint64_t *hits[2][2] = {{&counters->l1i_hits, &counters->l1d_hits},
                            {&counters->l2i_hits, &counters->l2d_hits}};
    uint64_t *misses[2][2] = {{&counters->l1i_misses, &counters->l1d_misses},
                              {&counters->l2i_misses, &counters->l2d_misses}};
    ++*(l1_hit ? hits : misses)[0][side];
    if (!l1_hit && mmu->tlb.sides[1][side].any)
        ++*(l2_hit ? hits : misses)[1][side];
}

static void from_tlb(vtx_walk *out, const tlb_entry *entry, uint64_t gva, unsigned source) {
    const unsigned shift = size_shift[tag_size(entry->tag)];
    out->source = (uint8_t)source;
    out->page_shift = (uint8_t)shift;
    out->hpa = (entry->payload & PAYLOAD_FRAME) | (gva & ((1ull << shift) - 1));
}

static void describe_rights(vtx_walk *out, uint64_t payload) {
    out->user = (payload & RIGHT_U) != 0;
    out->writable = (payload & RIGHT_W) != 0;
    out->executable = (payload & RIGHT_X) != 0;
    out->global = payload >> PAYLOAD_GLOBAL_SHIFT & 1;
    out->protection_key = payload >> PAYLOAD_KEY_SHIFT & 15;
    out->pat_index = payload >> PAYLOAD_PAT_SHIFT & 7;
    out->ept_memory_type = payload >> PAYLOAD_TYPE_SHIFT & 7;
    out->ignore_pat = payload >> PAYLOAD_IPAT_SHIFT & 1;
}

/* A stopped walk: count it, and forget what the SDM says it invalidates. */
static uint32_t stopped(walker *w, uint64_t gva, uint32_t status) {
    vtx_mmu *mmu = w->mmu;
    vtx_counters *counters = &mmu->counters;
    uint64_t *const count[] = {[VTX_PAGE_FAULT] = &counters->page_faults,
                               [VTX_NON_CANONICAL] = &counters->non_canonical,
                               [VTX_EPT_VIOLATION] = &counters->ept_violations,
                               [VTX_EPT_MISCONFIGURATION] = &counters->ept_misconfigurations,
                               [VTX_PML_FULL] = &counters->pml_full,
                               [VTX_SPP_MISS] = &counters->spp_misses,
                               [VTX_SPP_MISCONFIGURATION] = &counters->spp_misconfigurations,
                               [VTX_BEYOND_MEMORY] = &counters->beyond_memory};
    if (status < sizeof count / sizeof *count && count[status])
        ++*count[status];
    counters->walks_stopped += status != VTX_NON_CANONICAL;
    if (w->caches &&
        (status == VTX_PAGE_FAULT || (status == VTX_EPT_VIOLATION && w->out->translated)))
        mmu_forget_linear(mmu, gva);
    if (w->caches && status == VTX_EPT_VIOLATION)
        mmu_forget_guest_physical(mmu, w->out->gpa);
    return status;
}

static uint32_t identity(walker *w, uint64_t gva) {
    vtx_walk *out = w->out;
    out->source = VTX_FROM_IDENTITY;
    out->gpa = out->hpa = gva & w->mmu->guest.linear_mask;
    out->gpa_valid = 1;
    if (!mem_holds(w->mmu->memory, out->hpa, 1)) {
        out->fault_address = out->hpa;
        out->status = VTX_BEYOND_MEMORY;
        return stopped(w, gva, VTX_BEYOND_MEMORY);
    }
    return out->status = VTX_OK;
}

/* A lookup that found an entry whose rights do not suffice. */
typedef struct {
    const tlb_entry *entry;
    unsigned level; /* 0 first, 1 second */
} stale_hit;

/* The page of `stale`, walked again. The same page with other rights or another frame stays
 * where it is in the LRU orders, and comes to the first level if only the second had it. NULL if
 * what was found is of another size or space: then it replaces all that was there. */
static tlb_entry *replace_stale(vtx_mmu *mmu, const stale_hit *stale, uint64_t gva, unsigned side,
                                enum tlb_size size, uint32_t space, uint64_t payload) {
    const tlb_side *l1 = &mmu->tlb.sides[0][side];
    const tlb_side *l2 = &mmu->tlb.sides[1][side];
    const uint64_t tag = stale->entry->tag;
    if (tag_space(tag) != space ||
        tag_size(tag) != mmu->tlb.sides[stale->level][side].stored_as[size])
        return NULL;
    tlb_update(l2, gva, size, space, payload);
    return stale->level == 0 ? tlb_update(l1, gva, size, space, payload)
                             : tlb_fill(&mmu->tlb, l1, gva, size, space, payload);
}

/* The walk after a miss (nothing stale) or after a hit whose rights do not suffice. */
static uint32_t walk_and_fill(walker *w, uint64_t gva, uint32_t access, const stale_hit *stale,
                              tlb_entry **entry) {
    vtx_mmu *mmu = w->mmu;
    const unsigned side = access_is_fetch(access) ? 0 : 1;
    const tlb_side *l1 = &mmu->tlb.sides[0][side];
    const tlb_side *l2 = &mmu->tlb.sides[1][side];
    uint64_t payload = 0;
    enum tlb_size size = SIZE_4K;
    const uint32_t status = walk_linear(w, gva, access, &payload, &size);
    if (status)
        return stopped(w, gva, status);
    mmu->counters.walks++;
    mmu->counters.fills[size]++;
    describe_rights(w->out, payload);
    const int global = payload >> PAYLOAD_GLOBAL_SHIFT & 1;
    const uint32_t space = global ? mmu->global_space : mmu->space;
    if (stale->entry) {
        mmu->generation++;
        *entry = replace_stale(mmu, stale, gva, side, size, space, payload);
        if (*entry)
            return VTX_OK;
        mmu_forget_linear(mmu, gva);
    }
    tlb_fill(&mmu->tlb, l2, gva, size, space, payload);
    *entry = tlb_fill(&mmu->tlb, l1, gva, size, space, payload);
    return VTX_OK;
}

uint32_t mmu_translate_page(walker *w, uint64_t gva, uint32_t access, tlb_entry **entry) {
    vtx_mmu *mmu = w->mmu;
    *entry = NULL;
    if (mmu->identity)
        return identity(w, gva);
    gva &= mmu->guest.linear_mask;
    if (!guest_is_canonical(&mmu->guest, gva)) {
        w->out->status = VTX_NON_CANONICAL;
        return stopped(w, gva, VTX_NON_CANONICAL);
    }
    const unsigned side = access_is_fetch(access) ? 0 : 1;
    const tlb_side *l1 = &mmu->tlb.sides[0][side];
    tlb_entry *first = tlb_find(l1, gva, mmu->space, mmu->global_space);
    if (first && mmu_allows(mmu, first->payload, access)) {
        count_lookup(mmu, side, 1, 0);
        from_tlb(w->out, first, gva, VTX_FROM_L1);
        *entry = first;
        return w->out->status = VTX_OK;
    }
    tlb_entry *second =
        first ? NULL : tlb_find(&mmu->tlb.sides[1][side], gva, mmu->space, mmu->global_space);
    if (second && mmu_allows(mmu, second->payload, access)) {
        const tlb_entry found = *second;
        count_lookup(mmu, side, 0, 1);
        from_tlb(w->out, &found, gva, VTX_FROM_L2);
        *entry = tlb_fill(&mmu->tlb, l1, gva, (enum tlb_size)tag_size(found.tag), tag_space(found.tag),
                          found.payload);
        return w->out->status = VTX_OK;
    }
    const stale_hit stale = {first ? first : second, first ? 0 : 1};
    const uint32_t status = walk_and_fill(w, gva, access, &stale, entry);
    if (status)
        return status;
    mmu->counters.rewalks += stale.entry != NULL;
    count_lookup(mmu, side, first != NULL, second != NULL);
    return VTX_OK;
}

/* ---- Calls for one address ------------------------------------------------------------------ */

static walker walker_for(vtx_mmu *mmu, vtx_context *context, vtx_walk *out, vtx_step *steps,
                         uint32_t capacity, int caches) {
    mmu_enter(mmu, context);
    memset(out, 0, sizeof *out);
    return (walker){.mmu = mmu,
                    .context = context,
                    .out = out,
                    .steps = steps,
                    .capacity = steps ? capacity : 0,
                    .caches = (uint8_t)caches};
}

uint32_t vtx_translate(vtx_mmu *mmu, vtx_context *context, uint64_t gva, uint32_t access,
                       vtx_walk *out, vtx_step *steps, uint32_t capacity) {
    walker w = walker_for(mmu, context, out, steps, capacity, 1);
    tlb_entry *entry;
    out->gva = gva;
    out->access = access;
    const uint32_t status = mmu_translate_page(&w, gva, access & 7, &entry);
    front_forget(mmu); /* this lookup was not the run loop's */
    if (status == VTX_OK) {
        mmu->counters.references[access & 3]++;
        if (entry)
            describe_rights(out, entry->payload);
    }
    return status;
}

int vtx_fetch_hit(const vtx_fetch *fetch) {
    vtx_mmu *mmu = fetch->mmu;
    mmu_enter(mmu, fetch->context);
    const uint64_t gva = fetch->gva & mmu->guest.linear_mask;
    if (mmu->identity || !guest_is_canonical(&mmu->guest, gva))
        return 0;
    /* An entry that is found and does not suffice is now the most recently used of its set; so it
     * is, too, after the lookup that follows. */
    const tlb_entry *first = tlb_find(&mmu->tlb.sides[0][0], gva, mmu->space, mmu->global_space);
    if (!first || !mmu_allows(mmu, first->payload, VTX_FETCH))
        return 0;
    count_lookup(mmu, 0, 1, 0);
    mmu->counters.references[VTX_FETCH]++;
    return 1;
}

uint32_t vtx_walk_tables(vtx_mmu *mmu, vtx_context *context, uint64_t gva, uint32_t access,
                         vtx_walk *out, vtx_step *steps, uint32_t capacity) {
    walker w = walker_for(mmu, context, out, steps, capacity, 0);
    uint64_t payload = 0;
    enum tlb_size size;
    out->gva = gva;
    out->access = access;
    const vtx_counters before = mmu->counters; /* a look at the tables is no event of the guest */
    const uint32_t status = walk_linear(&w, gva, access & 7, &payload, &size);
    mmu->counters = before;
    if (status == VTX_OK)
        describe_rights(out, payload);
    return status;
}

uint32_t vtx_translate_guest_physical(vtx_mmu *mmu, vtx_context *context, uint64_t gpa,
                                      uint32_t access, vtx_walk *out, vtx_step *steps,
                                      uint32_t capacity) {
    walker w = walker_for(mmu, context, out, steps, capacity, 1);
    out->access = access;
    const uint32_t status = walk_guest_physical(&w, gpa, access & 7);
    return status ? stopped(&w, 0, status) : status;
}

/* ---- Many addresses ------------------------------------------------------------------------- */

static vtx_translation row_of(const vtx_walk *walk) {
    return (vtx_translation){.hpa = walk->hpa,
                             .gpa = walk->gpa,
                             .qualification = walk->qualification,
                             .status = walk->status,
                             .error_code = walk->error_code,
                             .page_shift = walk->page_shift,
                             .source = walk->source,
                             .gpa_valid = walk->gpa_valid,
                             .translated = walk->translated};
}

static vtx_translation walk_row(vtx_mmu *mmu, vtx_context *context, uint64_t gva, uint32_t access) {
    fast_result r;
    if (fast_walk(mmu_tests(mmu), mmu->memory, gva, access & 7, &r))
        return fast_row(r.hpa, r.gpa, fast_shift(&r));
    vtx_walk one;
    vtx_walk_tables(mmu, context, gva, access, &one, NULL, 0);
    return row_of(&one);
}

void vtx_walk_many(vtx_mmu *mmu, vtx_context *context, uint64_t count, const uint64_t *gvas,
                   const uint8_t *accesses, uint32_t access_stride, uint32_t side_by_side,
                   vtx_translation *out) {
    mmu_enter(mmu, context);
    uint64_t i = 0;
    while (side_by_side && !access_stride && i < count) {
        const unsigned lanes = count - i < FAST_LANES ? (unsigned)(count - i) : FAST_LANES;
        unsigned left = fast_walk_lanes(mmu_tests(mmu), mmu->memory, accesses[0] & 7, gvas + i,
                                        lanes, out + i);
        for (; left; left &= left - 1) {
            const uint64_t k = i + lowest_bit(left);
            out[k] = walk_row(mmu, context, gvas[k], accesses[0]);
        }
        i += lanes;
    }
    for (; i < count; i++)
        out[i] = walk_row(mmu, context, gvas[i], accesses[i * access_stride]);
}

/* Translations where there is no cache at all: every one is a walk. Those that take no decision are
 * made side by side, the others in their order. */
static void translate_uncached(vtx_mmu *mmu, vtx_context *context, uint64_t count,
                               const uint64_t *gvas, uint32_t access, vtx_translation *out) {
    mmu_enter(mmu, context);
    const unsigned side = access_is_fetch(access) ? 0 : 1;
    uint64_t done = 0;
    for (uint64_t i = 0; i < count;) {
        const unsigned lanes = count - i < FAST_LANES ? (unsigned)(count - i) : FAST_LANES;
        unsigned left = fast_walk_lanes(mmu_tests(mmu), mmu->memory, access & 7, gvas + i, lanes,
                                        out + i);
        for (unsigned k = 0; k < lanes; k++)
            done += !(left >> k & 1);
        for (; left; left &= left - 1) {
            const uint64_t k = i + lowest_bit(left);
            vtx_walk one;
            vtx_translate(mmu, context, gvas[k], access, &one, NULL, 0);
            out[k] = row_of(&one);
        }
        i += lanes;
    }
    walk_count(&mmu->counters, done);
    mmu->counters.references[access & 3] += done;
    *(side ? &mmu->counters.l1d_misses : &mmu->counters.l1i_misses) += done;
}

void vtx_translate_many(vtx_mmu *mmu, vtx_context *context, uint64_t count, const uint64_t *gvas,
                        const uint8_t *accesses, uint32_t access_stride, vtx_translation *out) {
    vtx_walk one;
    const int uncached = !mmu->tlb.array_count && !mmu->has_caches && !access_stride &&
                         !(context->controls & VTX_ENABLE_PML);
    if (uncached && count) {
        translate_uncached(mmu, context, count, gvas, accesses[0], out);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        vtx_translate(mmu, context, gvas[i], accesses[i * access_stride], &one, NULL, 0);
        out[i] = row_of(&one);
    }
}

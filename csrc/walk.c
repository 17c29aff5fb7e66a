/* The two-dimensional walk: guest paging (guest.c) over EPT (ept.c), in the manual's order.
 *
 * For a linear address, with paging and EPT on:
 *
 *   1  The address must be canonical.
 *   2  For each guest entry, from the top:
 *      a  its guest-physical address is translated by EPT, as a data read (with EPT's accessed
 *         and dirty flags on, as a write, too): violation, misconfiguration;
 *      b  the entry is read;
 *      c  it must be present and well-formed: page fault.
 *   3  The rights of all guest entries must allow the access: page fault.
 *   4  Accessed flags, and for a write the leaf's dirty flag, are set in the guest entries that
 *      lack them. These are writes: where EPT does not let the entry's page be written, a
 *      violation.
 *   5  The guest-physical address itself is translated by EPT, as the access that it is.
 *   6  What was found may be cached.
 *
 * g guest levels over h EPT levels make (g + 1)(h + 1) - 1 references. Without EPT the walk is
 * the guest's alone; without paging it is step 5 alone.
 *
 * A first reading may skip everything under `w->caches`: the paging-structure caches and the
 * nested TLB change which references are made, never what is found. */
#include "walk.h"

/* A guest entry that the walk used, by level. */
typedef struct {
    uint64_t gpa, hpa, value;
    uint32_t ept_rights;
    uint8_t user, writable, executable; /* of the walk after this entry */
    uint8_t used;
} used_entry;

/* ---- Guest dimension ------------------------------------------------------------------------ */

/* Complete the qualification of an EPT violation met on behalf of a linear address. */
static uint32_t for_linear(walker *w, uint32_t status, const guest_walk *g, int translated) {
    vtx_walk *out = w->out;
    out->translated = (uint8_t)translated;
    if (status != VTX_EPT_VIOLATION)
        return status;
    out->qualification |= EPTQ_GLA_VALID;
    if (!translated)
        return status;
    out->qualification |= EPTQ_TRANSLATED;
    if (!w->mmu->ept.advanced)
        return status;
    /* Advanced information: the rights that paging gives the linear address. */
    if (g->user)
        out->qualification |= EPTQ_USER;
    if (g->writable)
        out->qualification |= EPTQ_WRITABLE;
    if (!g->executable)
        out->qualification |= EPTQ_XD;
    return status;
}

static uint32_t page_fault(walker *w, uint32_t error_code) {
    w->out->error_code = error_code;
    return walk_stop(w, VTX_PAGE_FAULT);
}

/* Start at the deepest guest table that a paging-structure cache knows. */
static void guest_skip(walker *w, guest_walk *g, used_entry *table) {
    vtx_mmu *mmu = w->mmu;
    for (unsigned level = 2; level <= g->level; level++) {
        small_cache *cache = &mmu->guest_caches[level];
        if (!cache->used)
            continue;
        const uint64_t tag = cache_tag(g->gva, guest_shift(&mmu->guest, level), mmu->space);
        const cache_entry *hit = cache_find(cache, tag);
        if (!hit)
            continue;
        g->level = (uint8_t)(level - 1);
        g->user = (hit->rights & RIGHT_U) != 0;
        g->writable = (hit->rights & RIGHT_W) != 0;
        g->executable = (hit->rights & RIGHT_X) != 0;
        guest_resume(&mmu->guest, g, hit->gpa);
        *table = (used_entry){
            .gpa = hit->gpa, .hpa = hit->base, .ept_rights = hit->rights >> 8, .used = 1};
        mmu->counters.guest_cache_hits[level]++;
        walk_note(w, VTX_GUEST, level, VTX_CACHED, 0, hit->gpa, hit->base);
        return;
    }
}

static void guest_remember(walker *w, const guest_walk *g, const used_entry used[6], unsigned top) {
    vtx_mmu *mmu = w->mmu;
    for (unsigned level = top; level > g->level; level--) {
        small_cache *cache = &mmu->guest_caches[level];
        if (!cache->count)
            continue;
        const uint64_t tag = cache_tag(g->gva, guest_shift(&mmu->guest, level), mmu->space);
        cache_entry *entry = cache_claim(cache, tag);
        const used_entry *here = &used[level];
        const used_entry *below = &used[level - 1];
        entry->shift = guest_shift(&mmu->guest, level);
        entry->base = below->hpa & ~0xFFFull;
        entry->gpa = below->gpa & ~0xFFFull;
        entry->rights = (here->user ? RIGHT_U : 0u) | (here->writable ? RIGHT_W : 0u) |
                        (here->executable ? RIGHT_X : 0u) | below->ept_rights << 8;
        entry->leaf = ~(PTE_XD | PTE_U | PTE_W) | (here->user ? PTE_U : 0u) |
                      (here->writable ? PTE_W : 0u) | (here->executable ? 0u : PTE_XD);
    }
}

/* Steps 2a and 2b: find and read the guest entry at g->entry_gpa. */
static uint32_t guest_read(walker *w, const guest_walk *g, used_entry *entry,
                           const used_entry *known_table) {
    vtx_mmu *mmu = w->mmu;
    w->guest_level = g->level;
    entry->gpa = g->entry_gpa;
    if (known_table->used) { /* a paging-structure cache gave the table's host-physical address */
        entry->hpa = known_table->hpa | (g->entry_gpa & 0xFFF);
        entry->ept_rights = known_table->ept_rights;
    } else {
        gpa_translation table;
        const uint32_t access = EPTQ_READ | (mmu->ept.flags ? EPTQ_WRITE : 0u);
        const uint32_t status = walk_gpa(w, g->entry_gpa, access, 0, &table);
        if (status)
            return for_linear(w, status, g, 0);
        entry->hpa = table.hpa;
        entry->ept_rights = table.rights;
    }
    w->unverified |= !(entry->ept_rights & EPT_PAGING_WRITE);
    const unsigned size = guest_entry_size(&mmu->guest);
    if (!mem_holds(mmu->memory, entry->hpa, size))
        return walk_stop_beyond(w, entry->hpa);
    entry->value =
        size == 8 ? mem_load64(mmu->memory, entry->hpa) : mem_load32(mmu->memory, entry->hpa);
    mmu->counters.guest_references[g->level]++;
    walk_note(w, VTX_GUEST, g->level, VTX_READ, entry->hpa, entry->gpa, entry->value);
    walk_refer(w, mmu->counters.guest_walk, entry->hpa);
    w->out->guest_entry = entry->value;
    w->out->guest_level = g->level;
    return VTX_OK;
}

/* Step 2: all guest entries. */
static uint32_t guest_descend(walker *w, guest_walk *g, used_entry used[6], unsigned *top,
                              uint32_t access) {
    const guest_mode *mode = &w->mmu->guest;
    used_entry table = {.used = 0};
    if (w->caches && !w->hlat && !w->mmu->ept.verify)
        guest_skip(w, g, &table);
    *top = g->level;
    for (;;) {
        used_entry *entry = &used[g->level];
        const uint32_t status = guest_read(w, g, entry, &table);
        if (status)
            return status;
        table.used = 0;
        const enum guest_step step = guest_use(mode, g, entry->value);
        if (step >= GUEST_NOT_PRESENT)
            return page_fault(w, guest_entry_fault(mode, access, step == GUEST_RESERVED) |
                                     (w->hlat ? PF_HLAT : 0u));
        if (w->hlat && (entry->value & PTE_RESTART)) {
            /* "HLAT Paging": start again with ordinary paging. */
            w->hlat = 0;
            w->unverified = 0;
            guest_begin(mode, g, g->gva);
            return guest_descend(w, g, used, top, access);
        }
        entry->user = g->user;
        entry->writable = g->writable;
        entry->executable = g->executable;
        if (step == GUEST_DONE)
            return VTX_OK;
    }
}

/* Step 4: "Accessed and Dirty Flags". */
static uint32_t guest_set_flags(walker *w, const guest_walk *g, used_entry used[6], unsigned top,
                                uint32_t access) {
    vtx_mmu *mmu = w->mmu;
    for (unsigned level = top; level >= g->level; level--) {
        used_entry *entry = &used[level];
        const int dirties = level == g->level && access_is_write(access);
        const uint32_t missing = (PTE_A | (dirties ? PTE_D : 0u)) & ~(uint32_t)entry->value;
        if (!missing)
            continue;
        if (!(entry->ept_rights & EPT_W)) {
            /* Setting a flag reads and writes the entry: both bits are reported. */
            ept_walk e = {.gpa = entry->gpa, .rights = entry->ept_rights};
            w->guest_level = (uint8_t)level;
            return for_linear(w, walk_violation(w, &e, EPTQ_READ | EPTQ_WRITE, 1), g, 0);
        }
        entry->value |= missing;
        if (guest_entry_size(&mmu->guest) == 8)
            mem_or64(mmu->memory, entry->hpa, missing);
        else
            mem_or32(mmu->memory, entry->hpa, missing);
        mmu->counters.guest_flag_writes++;
        walk_note(w, VTX_GUEST, level, VTX_WRITE, entry->hpa, entry->gpa, entry->value);
    }
    return VTX_OK;
}

/* ---- Step 6: what the TLBs may keep --------------------------------------------------------- */

static enum tlb_size size_of_shift(unsigned shift) {
    return shift >= 30 ? SIZE_1G : shift >= 21 ? SIZE_2M : SIZE_4K;
}

/* The page is as large as the smaller of the two pages; 4 KBytes if it is not all in memory. */
static unsigned effective_shift(const walker *w, unsigned guest, const gpa_translation *final) {
    unsigned shift = guest ? guest : final->shift;
    if (final->shift && final->shift < shift)
        shift = final->shift;
    if (shift == 22) /* a 4-MByte page is kept as 2-MByte pages */
        shift = 21;
    const uint64_t page = 1ull << shift;
    return mem_holds(w->mmu->memory, final->hpa & ~(page - 1), page) ? shift : 12;
}

static uint64_t ept_payload(const ept_mode *mode, const guest_walk *g,
                            const gpa_translation *final) {
    if (!mode->levels)
        return RIGHT_EPT_R | RIGHT_EPT_W | RIGHT_EPT_X;
    const uint32_t execute = mode->mode_based && g->user ? EPT_XU : EPT_X;
    const int writable = (final->rights & EPT_W) && (!mode->flags || (final->leaf & EPT_D));
    return (final->rights & EPT_R ? RIGHT_EPT_R : 0u) | (writable ? RIGHT_EPT_W : 0u) |
           (final->rights & execute ? RIGHT_EPT_X : 0u) |
           (final->leaf >> EPT_TYPE_SHIFT & 7) << PAYLOAD_TYPE_SHIFT |
           (final->leaf & EPT_IPAT ? 1ull << PAYLOAD_IPAT_SHIFT : 0);
}

static uint64_t pat_index(const guest_mode *mode, const guest_walk *g) {
    if (mode->paging == PAGING_NONE)
        return 0;
    const uint32_t pat = g->level == 1 ? PTE_PAT : PTE_PAT_LARGE;
    return (g->leaf & pat ? 4u : 0u) | (g->leaf >> 3 & 3);
}

static uint64_t make_payload(const walker *w, const guest_walk *g, const gpa_translation *final,
                             int dirty, unsigned shift) {
    const unsigned guest_size = g->shift == 22 ? SIZE_4M : size_of_shift(g->shift);
    const uint64_t rights = (g->user ? RIGHT_U : 0u) | (g->writable ? RIGHT_W : 0u) |
                            (g->executable ? RIGHT_X : 0u) | (dirty ? RIGHT_D : 0u);
    return (final->hpa & ~((1ull << shift) - 1)) | rights | ept_payload(&w->mmu->ept, g, final) |
           (uint64_t)g->key << PAYLOAD_KEY_SHIFT | (uint64_t)g->global << PAYLOAD_GLOBAL_SHIFT |
           (uint64_t)guest_size << PAYLOAD_GUEST_SHIFT |
           pat_index(&w->mmu->guest, g) << PAYLOAD_PAT_SHIFT;
}

static void describe(walker *w, const guest_walk *g, const gpa_translation *final, unsigned shift) {
    vtx_walk *out = w->out;
    out->gpa = g->gpa;
    out->gpa_valid = 1;
    out->hpa = final->hpa;
    out->translated = 1;
    out->guest_shift = g->shift;
    out->ept_shift = final->shift;
    out->page_shift = (uint8_t)shift;
}

/* ---- The whole walk ------------------------------------------------------------------------- */

static uint32_t ept_access(uint32_t access) {
    if (access_is_fetch(access))
        return EPTQ_FETCH;
    return access_is_write(access) ? EPTQ_WRITE : EPTQ_READ;
}

uint32_t walk_linear(walker *w, uint64_t gva, uint32_t access, uint64_t *payload,
                     enum tlb_size *size) {
    if (walk_quick(w, gva, access, payload, size))
        return VTX_OK;
    vtx_mmu *mmu = w->mmu;
    const guest_mode *mode = &mmu->guest;
    guest_walk g;
    used_entry used[6];
    unsigned top = 0;
    uint32_t status;

    /* Step 1. */
    const enum guest_step step = guest_begin(mode, &g, gva);
    if (!guest_is_canonical(mode, g.gva))
        return walk_stop(w, VTX_NON_CANONICAL);
    if (step == GUEST_NOT_PRESENT)
        return page_fault(w, guest_entry_fault(mode, access, 0));
    w->unverified = 0;
    w->hlat = step == GUEST_DESCEND && guest_uses_hlat(mode, g.gva);
    if (w->hlat)
        guest_resume(mode, &g, mode->hlat_root);
    if (step == GUEST_DESCEND) {
        /* Step 2. */
        status = guest_descend(w, &g, used, &top, access);
        if (status)
            return status;
        /* Step 3. */
        const uint32_t error_code = guest_permission(mode, &g, access);
        if (error_code)
            return page_fault(w, error_code);
        /* Step 4. */
        status = guest_set_flags(w, &g, used, top, access);
        if (status)
            return status;
    }
    /* Step 5. */
    gpa_translation final;
    w->guest_level = 0;
    status = walk_gpa(w, g.gpa, ept_access(access), g.user, &final);
    if (status)
        return for_linear(w, status, &g, 1);
    const unsigned shift = effective_shift(w, g.shift, &final);
    describe(w, &g, &final, shift);
    if (!mem_holds(mmu->memory, final.hpa, 1))
        return walk_stop_beyond(w, final.hpa);
    /* Step 6. */
    if (w->caches && step == GUEST_DESCEND && !w->hlat)
        guest_remember(w, &g, used, top);
    const int dirty = step == GUEST_DONE || (used[g.level].value & PTE_D);
    *payload = make_payload(w, &g, &final, dirty, shift);
    *size = size_of_shift(shift);
    return walk_stop(w, VTX_OK);
}

uint32_t walk_guest_physical(walker *w, uint64_t gpa, uint32_t access) {
    gpa_translation final;
    const uint32_t status = walk_gpa(w, gpa, ept_access(access), 0, &final);
    if (status)
        return status;
    w->out->gpa = gpa;
    w->out->gpa_valid = 1;
    w->out->hpa = final.hpa;
    w->out->ept_shift = w->out->page_shift = final.shift;
    if (!mem_holds(w->mmu->memory, final.hpa, 1))
        return walk_stop_beyond(w, final.hpa);
    return walk_stop(w, VTX_OK);
}

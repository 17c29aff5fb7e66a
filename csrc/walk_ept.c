/* The EPT dimension of a walk: ept.c's steps over memory, with the flags and the log that they
 * write, and the caches that spare them. */
#include "walk.h"

/* The entries that one EPT walk read, by level. */
typedef struct {
    uint64_t address[6], value[6];
    uint32_t rights[6]; /* AND down to this level */
    unsigned top;       /* level of the first entry read */
} ept_path;

/* Start at the deepest table that an EPT paging-structure cache knows. */
static void ept_skip(walker *w, ept_walk *e) {
    vtx_mmu *mmu = w->mmu;
    for (unsigned level = 2; level <= e->level; level++) {
        small_cache *cache = &mmu->ept_caches[level];
        if (!cache->used)
            continue;
        const cache_entry *hit =
            cache_find(cache, cache_tag(e->gpa, 3 + 9 * level, mmu->physical_space));
        if (!hit)
            continue;
        e->level = level - 1;
        e->rights = hit->rights;
        e->entry_hpa = ept_entry_address(hit->base, e->gpa, level - 1);
        mmu->counters.ept_cache_hits[level]++;
        walk_note(w, VTX_EPT, level, VTX_CACHED, 0, e->gpa, hit->base);
        return;
    }
}

static void ept_remember(walker *w, const ept_walk *e, const ept_path *path) {
    for (unsigned level = path->top; level > e->level; level--) {
        small_cache *cache = &w->mmu->ept_caches[level];
        if (!cache->count)
            continue;
        cache_entry *entry =
            cache_claim(cache, cache_tag(e->gpa, 3 + 9 * level, w->mmu->physical_space));
        entry->base = path->value[level] & w->mmu->ept.address_mask;
        entry->rights = path->rights[level];
        entry->leaf = path->rights[level] | ~(uint64_t)(EPT_R | EPT_W | EPT_X | EPT_XU);
        entry->shift = 3 + 9 * level;
    }
}

/* "Page-Modification Logging": a dirty flag that changes from 0 to 1 is logged. */
static uint32_t pml_log(walker *w, uint64_t gpa) {
    vtx_context *context = w->context;
    const uint64_t address = (context->pml_address & ~0xFFFull) + 8 * (uint64_t)context->pml_index;
    if (!mem_holds(w->mmu->memory, address, 8))
        return walk_stop_beyond(w, address);
    mem_store64(w->mmu->memory, address, gpa & ~0xFFFull);
    walk_note(w, VTX_LOG, 0, VTX_WRITE, address, gpa, gpa & ~0xFFFull);
    w->mmu->counters.pml_writes++;
    context->pml_index--; /* after 0 comes FFFFH: full */
    return VTX_OK;
}

/* "Accessed and Dirty Flags for EPT": set A in every entry used and, for a write, D in the leaf. */
static uint32_t ept_set_flags(walker *w, ept_walk *e, ept_path *path, int write) {
    uint64_t missing[6];
    uint64_t any = 0;
    for (unsigned level = path->top; level >= e->level; level--) {
        const uint64_t wanted = EPT_A | (write && level == e->level ? EPT_D : 0u);
        missing[level] = wanted & ~path->value[level];
        any |= missing[level];
    }
    if (!any)
        return VTX_OK;
    /* Before any flag is set the PML index must be in range (0 to 511). */
    const int logging = (w->context->controls & VTX_ENABLE_PML) != 0;
    if (logging && w->context->pml_index > 511)
        return walk_stop_ept(w, VTX_PML_FULL, e->gpa);
    if (logging && (missing[e->level] & EPT_D)) {
        const uint32_t status = pml_log(w, e->gpa);
        if (status)
            return status;
    }
    for (unsigned level = path->top; level >= e->level; level--) {
        if (!missing[level])
            continue;
        path->value[level] |= missing[level];
        mem_or64(w->mmu->memory, path->address[level], missing[level]);
        w->mmu->counters.ept_flag_writes++;
        walk_note(w, VTX_EPT, level, VTX_WRITE, path->address[level], e->gpa, path->value[level]);
    }
    e->leaf = path->value[e->level];
    return VTX_OK;
}

/* "EPT Violations": the part of the exit qualification that the EPT walk knows. */
uint32_t walk_violation(walker *w, const ept_walk *e, uint32_t access, int complete) {
    uint64_t qualification = access;
    /* Bits 5:3 (and 6): AND over the entries used; 0 if one of them is not present, or if the
     * address is wider than the walk translates. */
    if (complete) {
        qualification |= (uint64_t)(e->rights & 7) << EPTQ_R_SHIFT;
        if (w->mmu->ept.mode_based && (e->rights & EPT_XU))
            qualification |= EPTQ_XU;
    }
    w->out->qualification = qualification;
    return walk_stop_ept(w, VTX_EPT_VIOLATION, e->gpa);
}

/* Descend through the EPT paging structures. */
static uint32_t ept_descend(walker *w, ept_walk *result, ept_path *path, uint32_t access) {
    vtx_mmu *mmu = w->mmu;
    const ept_mode *mode = &mmu->ept;
    ept_walk e; /* not *result: what no pointer reaches stays in registers */
    uint64_t value = 0;
    enum ept_step step = ept_begin(mode, &e, result->gpa);
    if (step == EPT_NOT_PRESENT)
        return walk_violation(w, result, access, 0);
    if (w->caches) {
        ept_walk skipped = e;
        ept_skip(w, &skipped);
        e = skipped;
    }
    path->top = e.level;
    while (step == EPT_DESCEND) {
        const unsigned level = e.level;
        const uint64_t address = e.entry_hpa;
        if (!mem_holds(mmu->memory, address, 8))
            return walk_stop_beyond(w, address);
        value = mem_load64(mmu->memory, address);
        mmu->counters.ept_references[level]++;
        walk_note(w, VTX_EPT, level, VTX_READ, address, e.gpa, value);
        walk_refer(w, mmu->counters.ept_walk, address);
        step = ept_use(mode, &e, value);
        path->address[level] = address;
        path->value[level] = value;
        path->rights[level] = e.rights;
    }
    *result = e;
    w->out->ept_entry = value;
    w->out->ept_level = (uint8_t)e.level;
    /* Entry by entry: not present is a violation, malformed a misconfiguration. */
    if (step == EPT_NOT_PRESENT)
        return walk_violation(w, result, access, 0);
    return step == EPT_MALFORMED ? walk_stop_ept(w, VTX_EPT_MISCONFIGURATION, e.gpa) : VTX_OK;
}

/* The rights that the walk gives: bit 58 of the leaf lets paging itself write where bit 1 does not
 * let software ("EPT paging-write control"). */
static uint32_t effective_rights(const walker *w, uint32_t rights, uint64_t leaf) {
    const uint32_t paging_write = leaf >> EPT_PW_BIT & 1 ? EPT_PAGING_WRITE : 0u;
    const int lifts = paging_write && w->guest_level && w->mmu->ept.paging_write;
    return rights | paging_write | (lifts ? EPT_W : 0u);
}

/* "Guest-Paging Verification": the page asks (bit 57) that paging writes be allowed to every guest
 * entry that led to it. */
static int fails_verification(const walker *w, uint64_t leaf) {
    return w->mmu->ept.verify && !w->guest_level && w->unverified && (leaf >> EPT_VGP_BIT & 1);
}

/* "Sub-Page Write Permissions": may this write, which lacks bit 1 alone, look at them? */
static int eligible_for_spp(const walker *w, const ept_walk *e, uint32_t needs) {
    return w->mmu->ept.sub_page && !w->guest_level && (needs & ~e->rights) == EPT_W &&
           e->level == 1 && (e->leaf >> EPT_SPP_BIT & 1);
}

/* Walk the sub-page-permission table. 1: the write is allowed; 0: it is a violation, or *status. */
static int spp_walk(walker *w, uint64_t gpa, uint32_t *status) {
    const ept_mode *mode = &w->mmu->ept;
    const uint64_t reserved = ~(mode->address_mask | 1);
    uint64_t table = w->context->spptp & mode->address_mask;
    for (unsigned level = 4; level >= 1; level--) {
        const uint64_t address = ept_entry_address(table, gpa, level);
        if (!mem_holds(w->mmu->memory, address, 8)) {
            *status = walk_stop_beyond(w, address);
            return 0;
        }
        const uint64_t entry = mem_load64(w->mmu->memory, address);
        w->mmu->counters.spp_references++;
        walk_note(w, VTX_SPP, level, VTX_READ, address, gpa, entry);
        if (level == 1) { /* a vector of 32 permissions in the even bits */
            if (entry & 0xAAAAAAAAAAAAAAAAull)
                *status = walk_stop_ept(w, VTX_SPP_MISCONFIGURATION, gpa);
            return !*status && (entry >> 2 * (gpa >> 7 & 31) & 1);
        }
        if (!(entry & 1) || (entry & reserved)) {
            *status = walk_stop_ept(w, entry & 1 ? VTX_SPP_MISCONFIGURATION : VTX_SPP_MISS, gpa);
            return 0;
        }
        table = entry & mode->address_mask;
    }
    return 0;
}

/* Does the nested TLB know this guest-physical address, with the rights that are needed? */
static int nested_find(walker *w, uint64_t gpa, uint32_t access, uint32_t needs,
                       gpa_translation *out) {
    vtx_mmu *mmu = w->mmu;
    for (unsigned size = 0; size < 3; size++) {
        if (!(mmu->nested.present >> size & 1))
            continue;
        const cache_entry *hit =
            cache_find(&mmu->nested, tlb_tag(gpa, (enum tlb_size)size, mmu->physical_space));
        if (!hit || (effective_rights(w, hit->rights, hit->leaf) & needs) != needs ||
            fails_verification(w, hit->leaf))
            continue;
        if ((access & EPTQ_WRITE) && mmu->ept.flags && !(hit->leaf & EPT_D))
            continue; /* the dirty flag has to be set: walk */
        *out = (gpa_translation){.hpa = hit->base | (gpa & ((1ull << hit->shift) - 1)),
                                 .leaf = hit->leaf,
                                 .rights = effective_rights(w, hit->rights, hit->leaf),
                                 .shift = (uint8_t)hit->shift};
        mmu->counters.nested_hits++;
        walk_note(w, VTX_EPT, 0, VTX_CACHED, 0, gpa, out->hpa);
        return 1;
    }
    mmu->counters.nested_misses++;
    return 0;
}

void nested_remember(vtx_mmu *mmu, uint64_t gpa, const gpa_translation *found) {
    small_cache *cache = &mmu->nested;
    const unsigned size = (found->shift - 12u) / 9;
    cache_entry *entry =
        cache_claim(cache, tlb_tag(gpa, (enum tlb_size)size, mmu->physical_space));
    cache->present |= (uint8_t)(1u << size);
    entry->base = found->hpa & ~((1ull << found->shift) - 1);
    entry->rights = found->rights;
    entry->leaf = found->leaf;
    entry->shift = found->shift;
}

/* Translate a guest-physical address for `access` (EPTQ_READ, EPTQ_WRITE, EPTQ_FETCH). */
uint32_t walk_gpa(walker *w, uint64_t gpa, uint32_t access, int user_linear, gpa_translation *out) {
    vtx_mmu *mmu = w->mmu;
    if (!mmu->ept.levels) { /* without EPT a guest-physical address is the physical address */
        *out = (gpa_translation){.hpa = gpa, .rights = EPT_R | EPT_W | EPT_X | EPT_XU};
        return VTX_OK;
    }
    const uint32_t needs = ept_needs(&mmu->ept, access, user_linear);
    const int nested = w->caches && mmu->nested.count;
    if (nested && nested_find(w, gpa, access, needs, out))
        return VTX_OK;
    ept_walk e = {.gpa = gpa};
    ept_path path;
    uint32_t status = ept_descend(w, &e, &path, access);
    if (status)
        return status;
    /* "EPT Violations": rights are looked at once the address is known. */
    const uint32_t rights = effective_rights(w, e.rights, e.leaf);
    if ((rights & needs) != needs &&
        !(eligible_for_spp(w, &e, needs) && spp_walk(w, gpa, &status)))
        return status ? status : walk_violation(w, &e, access, 1);
    if (fails_verification(w, e.leaf)) {
        status = walk_violation(w, &e, access, 1);
        w->out->qualification |= EPTQ_VERIFICATION;
        return status;
    }
    if (mmu->ept.flags) {
        status = ept_set_flags(w, &e, &path, (access & EPTQ_WRITE) != 0);
        if (status)
            return status;
    }
    *out = (gpa_translation){
        .hpa = e.hpa, .leaf = e.leaf, .rights = e.rights, .shift = (uint8_t)e.shift};
    if (w->caches)
        ept_remember(w, &e, &path);
    if (nested)
        nested_remember(mmu, gpa, out);
    out->rights = rights;
    return VTX_OK;
}

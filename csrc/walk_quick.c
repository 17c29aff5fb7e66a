/* Walks that need no decision: the fast walk where nothing is cached, and the most common one with
 * paging-structure caches, which spare all but the last entry of each dimension. What they find,
 * count and cache is what walk.c would; where anything is unusual they do nothing and leave it
 * to walk.c. */
#include "walk.h"

static uint64_t quick_payload(const vtx_mmu *mmu, const fast_result *r, unsigned shift) {
    const guest_mode *guest = &mmu->guest;
    const ept_mode *ept = &mmu->ept;
    const int user = (r->guest_and & PTE_U) != 0;
    const uint64_t leaf = r->guest_leaf;
    uint64_t payload = (r->hpa & ~((1ull << shift) - 1)) | (user ? RIGHT_U : 0u) |
                       (r->guest_and & PTE_W ? RIGHT_W : 0u) |
                       (guest->nxe && (r->guest_or & PTE_XD) ? 0u : RIGHT_X) |
                       (leaf & PTE_D ? RIGHT_D : 0u) |
                       (leaf >> 59 & 15) << PAYLOAD_KEY_SHIFT |
                       (uint64_t)(guest->pge && (leaf & PTE_G)) << PAYLOAD_GLOBAL_SHIFT |
                       (uint64_t)((r->guest_shift - 12u) / 9) << PAYLOAD_GUEST_SHIFT;
    const uint32_t pat = r->guest_shift == 12 ? PTE_PAT : PTE_PAT_LARGE;
    payload |= ((leaf & pat ? 4u : 0u) | (leaf >> 3 & 3)) << PAYLOAD_PAT_SHIFT;
    if (!ept->levels)
        return payload | RIGHT_EPT_R | RIGHT_EPT_W | RIGHT_EPT_X;
    const uint32_t execute = ept->mode_based && user ? EPT_XU : EPT_X;
    const int writable = (r->ept_and & EPT_W) && (!ept->flags || (r->ept_leaf & EPT_D));
    return payload | (r->ept_and & EPT_R ? RIGHT_EPT_R : 0u) | (writable ? RIGHT_EPT_W : 0u) |
           (r->ept_and & execute ? RIGHT_EPT_X : 0u) |
           (r->ept_leaf >> EPT_TYPE_SHIFT & 7) << PAYLOAD_TYPE_SHIFT |
           (r->ept_leaf & EPT_IPAT ? 1ull << PAYLOAD_IPAT_SHIFT : 0);
}

static void conclude(walker *w, const fast_result *r, uint64_t *payload, enum tlb_size *size) {
    vtx_walk *out = w->out;
    const unsigned shift = fast_shift(r);
    out->gpa = r->gpa;
    out->hpa = r->hpa;
    out->gpa_valid = out->translated = 1;
    out->guest_entry = r->guest_leaf;
    out->guest_shift = r->guest_shift;
    out->guest_level = (uint8_t)((r->guest_shift - 3u) / 9);
    out->ept_shift = r->ept_shift;
    out->ept_level = r->ept_level;
    out->ept_entry = r->ept_level ? r->ept_leaf : 0;
    out->page_shift = (uint8_t)shift;
    out->status = VTX_OK;
    *payload = quick_payload(w->mmu, r, shift);
    *size = (enum tlb_size)((shift - 12) / 9);
}

/* The references of walks that all went as this one did. */
static void count_walks(vtx_counters *counters, const fast_result *r, int ept, uint64_t walks) {
    const unsigned leaf = (r->guest_shift - 3u) / 9;
    for (unsigned level = leaf; level <= 4; level++)
        counters->guest_references[level] += walks;
    if (!ept)
        return;
    const uint64_t ept_walks = 6 - leaf;
    counters->ept_references[4] += walks * ept_walks;
    counters->ept_references[3] += walks * ept_walks;
    counters->ept_references[2] += walks * (ept_walks - r->ended[3]);
    counters->ept_references[1] += walks * (ept_walks - r->ended[3] - r->ended[2]);
}

void walk_count(vtx_counters *counters, uint64_t walks) {
    static const fast_result small = {.guest_shift = 12, .ept_shift = 12};
    count_walks(counters, &small, 1, walks);
    counters->walks += walks;
    counters->fills[SIZE_4K] += walks;
}

/* Nothing cached: all entries of both dimensions. */
static int walk_all(vtx_mmu *mmu, uint64_t gva, uint32_t access, fast_result *r) {
    const walk_tests *tests = mmu_tests(mmu);
    if (!fast_walk(tests, mmu->memory, gva, access, r))
        return 0;
    count_walks(&mmu->counters, r, tests->ept, 1);
    r->ept_level = tests->ept ? (uint8_t)((r->ept_shift - 3u) / 9) : 0;
    return 1;
}

/* The guest PTE, by way of the cache of PDEs. */
static inline int guest_pte(vtx_mmu *mmu, const walk_tests *tests, uint64_t gva, uint32_t access,
                     fast_result *r) {
    small_cache *cache = &mmu->guest_caches[2];
    const cache_entry *hit =
        cache->used ? cache_find(cache, cache_tag(gva, 21, mmu->space)) : NULL;
    if (!hit || !mem_holds(mmu->memory, hit->base, 0x1000))
        return 0;
    const entry_test *test = &tests->guest[access].leaf[1];
    const uint64_t above = (hit->rights & RIGHT_U ? PTE_U : 0u) |
                           (hit->rights & RIGHT_W ? PTE_W : 0u) |
                           (hit->rights & RIGHT_X ? 0u : PTE_XD);
    const uint64_t entry = fast_load(mmu->memory->base, hit->base, ENTRY_OFFSET(gva, 1));
    const uint64_t needed = test->want & (PTE_U | PTE_W);
    if (!entry_passes(entry, test) || (above & needed) != needed ||
        (access_is_fetch(access) && (above & PTE_XD)))
        return 0;
    r->guest_leaf = entry;
    r->guest_and = entry & above;
    r->guest_or = entry | above;
    r->guest_shift = 12;
    r->gpa = (entry & GUEST_FRAME) | (gva & 0xFFF);
    return !(tests->deny_user[access] && (r->guest_and & PTE_U));
}

/* The EPT PTE, by way of the cache of EPT PDEs. */
static inline int ept_pte(vtx_mmu *mmu, const walk_tests *tests, uint32_t access, fast_result *r) {
    small_cache *cache = &mmu->ept_caches[2];
    const cache_entry *hit =
        cache->used ? cache_find(cache, cache_tag(r->gpa, 21, mmu->physical_space)) : NULL;
    if (!hit || !mem_holds(mmu->memory, hit->base, 0x1000))
        return 0;
    const entry_test *test = &tests->ept_last[access].leaf[1];
    const uint64_t entry = fast_load(mmu->memory->base, hit->base, ENTRY_OFFSET(r->gpa, 1));
    const uint64_t needed = test->want & (EPT_R | EPT_W | EPT_X);
    if (!entry_passes(entry, test) || ept_type_malformed(entry) ||
        (hit->rights & needed) != needed)
        return 0;
    r->ept_leaf = entry;
    r->ept_and = entry & hit->rights;
    r->ept_shift = 12;
    r->hpa = (entry & tests->frame) | (r->gpa & 0xFFF);
    return 1;
}

static inline const cache_entry *in_nested(vtx_mmu *mmu, const walk_tests *tests, uint32_t access,
                                    uint64_t gpa) {
    const entry_test *test = &tests->ept_last[access].leaf[1];
    const uint64_t needed = test->want & (EPT_R | EPT_W | EPT_X);
    for (unsigned size = 0; mmu->nested.present >> size; size++) {
        if (!(mmu->nested.present >> size & 1))
            continue;
        const cache_entry *hit =
            cache_find(&mmu->nested, tlb_tag(gpa, (enum tlb_size)size, mmu->physical_space));
        if (hit && (hit->rights & needed) == needed && !(test->want & ~hit->leaf & EPT_D))
            return hit;
    }
    return NULL;
}

/* One entry of each dimension at most. */
static int walk_last(vtx_mmu *mmu, uint64_t gva, uint32_t access, fast_result *r) {
    const walk_tests *tests = mmu_tests(mmu);
    vtx_counters *counters = &mmu->counters;
    r->ept_level = 0;
    if (!tests->on[access] || !tests->ept || !guest_pte(mmu, tests, gva, access, r))
        return 0;
    const cache_entry *known =
        mmu->nested.used ? in_nested(mmu, tests, access, r->gpa) : NULL;
    if (known) {
        r->hpa = known->base | (r->gpa & ((1ull << known->shift) - 1));
        if (!mem_holds(mmu->memory, r->hpa & ~((1ull << 12) - 1), 1ull << 12))
            return 0;
        r->ept_leaf = known->leaf;
        r->ept_and = known->rights;
        r->ept_shift = (uint8_t)known->shift;
        counters->nested_hits++;
    } else {
        if (!ept_pte(mmu, tests, access, r))
            return 0;
        counters->ept_cache_hits[2]++;
        counters->ept_references[1]++;
        r->ept_level = 1;
        if (mmu->nested.count) {
            counters->nested_misses++;
            const gpa_translation found = {r->hpa, r->ept_leaf, (uint32_t)r->ept_and, 12};
            nested_remember(mmu, r->gpa, &found);
        }
    }
    counters->guest_cache_hits[2]++;
    counters->guest_references[1]++;
    return 1;
}

int walk_quick(walker *w, uint64_t gva, uint32_t access, uint64_t *payload, enum tlb_size *size) {
    fast_result r;
    if (w->steps)
        return 0;
    const int found = w->caches && w->mmu->has_caches ? walk_last(w->mmu, gva, access, &r)
                                                      : walk_all(w->mmu, gva, access, &r);
    if (found)
        conclude(w, &r, payload, size);
    return found;
}

int walk_for_miss(vtx_mmu *mmu, uint64_t gva, uint32_t access, uint64_t *payload) {
    fast_result r;
    if (!walk_last(mmu, gva, access, &r))
        return 0;
    *payload = quick_payload(mmu, &r, 12);
    mmu->counters.walks++;
    mmu->counters.fills[SIZE_4K]++;
    return 1;
}

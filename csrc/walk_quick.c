/* Walks that need no decision: the fast walk where nothing is cached, and the most common one with
 * paging-structure caches, which spare all but the last entry of each dimension. What they find,
 * count and cache is what walk.c would; where anything is unusual they do nothing and leave it
 * to walk.c. */
#include "walk.h"

/* Bit `from` of a value as bit `to`. */
static inline uint64_t bit_as(uint64_t value, unsigned from, unsigned to) {
    return (value >> from & 1) << to;
}

/* What the TLBs keep (see tlb.h), without a branch that depends on the entries. */
static inline uint64_t quick_payload(const vtx_mmu *mmu, const fast_result *r, unsigned shift,
                                     unsigned guest_shift) {
    const guest_mode *guest = &mmu->guest;
    const ept_mode *ept = &mmu->ept;
    const uint64_t leaf = r->guest_leaf;
    const uint64_t executable = ~(r->guest_or >> 63 & guest->nxe) & 1;
    uint64_t payload = (r->hpa & ~((1ull << shift) - 1)) | bit_as(r->guest_and, 2, 0) |
                       (r->guest_and & RIGHT_W) | executable << 2 | bit_as(leaf, 6, 3) |
                       (leaf >> 59 & 15) << PAYLOAD_KEY_SHIFT |
                       (leaf >> 8 & guest->pge) << PAYLOAD_GLOBAL_SHIFT |
                       (uint64_t)((guest_shift - 12u) / 9) << PAYLOAD_GUEST_SHIFT |
                       (leaf >> 3 & 3) << PAYLOAD_PAT_SHIFT |
                       bit_as(leaf, guest_shift == 12 ? 7 : 12, PAYLOAD_PAT_SHIFT + 2);
    if (!ept->levels)
        return payload | RIGHT_EPT_R | RIGHT_EPT_W | RIGHT_EPT_X;
    const unsigned execute = ept->mode_based && (r->guest_and & PTE_U) ? 10 : 2; /* XU or X */
    const uint64_t dirty = r->ept_leaf >> 9 | (ept->flags ^ 1u);
    return payload | bit_as(r->ept_and, 0, 4) | bit_as(r->ept_and >> 1 & dirty, 0, 5) |
           bit_as(r->ept_and, execute, 6) |
           (r->ept_leaf >> EPT_TYPE_SHIFT & 7) << PAYLOAD_TYPE_SHIFT |
           bit_as(r->ept_leaf, 6, PAYLOAD_IPAT_SHIFT);
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
    *payload = quick_payload(w->mmu, r, shift, r->guest_shift);
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

/* Paging-structure caches keep in `leaf` what the entries above leave of an entry below them: U/S
 * and R/W where they have them, XD where one has it; all other bits are 1. */
static inline uint64_t guest_below(uint64_t entry, uint64_t above) {
    return (entry & (above | PTE_XD)) | (above & PTE_XD);
}

/* The guest PTE, by way of the cache of PDEs. */
static inline int guest_pte(vtx_mmu *mmu, const walk_tests *tests, uint64_t gva, uint32_t access,
                     fast_result *r) {
    small_cache *cache = &mmu->guest_caches[2];
    const cache_entry *hit =
        cache->used ? cache_find(cache, cache_tag(gva, 21, mmu->space)) : NULL;
    if (!hit || !mem_holds(mmu->memory, hit->base, 0x1000))
        return 0;
    const uint64_t entry = guest_below(
        fast_load(mmu->memory->base, hit->base, ENTRY_OFFSET(gva, 1)), hit->leaf);
    if (!entry_passes(entry, &tests->guest[access].leaf[1]))
        return 0;
    r->guest_leaf = r->guest_and = r->guest_or = entry;
    r->guest_shift = 12;
    r->gpa = (entry & GUEST_FRAME) | (gva & 0xFFF);
    return !(tests->deny_user[access] && (entry & PTE_U));
}

/* The EPT PTE, by way of the cache of EPT PDEs, which keep what they leave of the rights. */
static inline int ept_pte(vtx_mmu *mmu, const walk_tests *tests, uint32_t access, fast_result *r) {
    small_cache *cache = &mmu->ept_caches[2];
    const cache_entry *hit =
        cache->used ? cache_find(cache, cache_tag(r->gpa, 21, mmu->physical_space)) : NULL;
    if (!hit || !mem_holds(mmu->memory, hit->base, 0x1000))
        return 0;
    const uint64_t leaf = fast_load(mmu->memory->base, hit->base, ENTRY_OFFSET(r->gpa, 1));
    const uint64_t entry = leaf & hit->leaf;
    if (!entry_passes(entry, &tests->ept_last[access].leaf[1]) || ept_type_malformed(entry))
        return 0;
    r->ept_leaf = leaf;
    r->ept_and = entry;
    r->ept_shift = 12;
    r->hpa = (entry & tests->frame) | (r->gpa & 0xFFF);
    return 1;
}

/* The nested TLB's entry, if its rights suffice. `absent`: it has none for a 4-KByte page. */
static inline const cache_entry *in_nested(vtx_mmu *mmu, const walk_tests *tests, uint32_t access,
                                           uint64_t gpa, int *absent) {
    const entry_test *test = &tests->ept_last[access].leaf[1];
    const uint64_t needed = test->want & (EPT_R | EPT_W | EPT_X);
    *absent = 1;
    for (unsigned size = 0; mmu->nested.present >> size; size++) {
        if (!(mmu->nested.present >> size & 1))
            continue;
        const cache_entry *hit =
            cache_find(&mmu->nested, tlb_tag(gpa, (enum tlb_size)size, mmu->physical_space));
        if (hit && (hit->rights & needed) == needed && !(test->want & ~hit->leaf & EPT_D))
            return hit;
        *absent &= size != SIZE_4K || !hit;
    }
    return NULL;
}

/* What the nested TLB learns of a page that it has no entry for. */
static inline void nested_add(vtx_mmu *mmu, const fast_result *r) {
    cache_entry *entry =
        cache_replace(&mmu->nested, tlb_tag(r->gpa, SIZE_4K, mmu->physical_space));
    mmu->nested.present |= 1u << SIZE_4K;
    entry->base = r->hpa & ~0xFFFull;
    entry->rights = (uint32_t)r->ept_and;
    entry->leaf = r->ept_leaf;
    entry->shift = 12;
}

/* One entry of each dimension at most. */
static int walk_last(vtx_mmu *mmu, uint64_t gva, uint32_t access, fast_result *r) {
    const walk_tests *tests = mmu_tests(mmu);
    vtx_counters *counters = &mmu->counters;
    r->ept_level = 0;
    if (!tests->on[access] || !tests->ept || !guest_pte(mmu, tests, gva, access, r))
        return 0;
    int absent;
    const cache_entry *known = in_nested(mmu, tests, access, r->gpa, &absent);
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
            if (absent)
                nested_add(mmu, r);
            else
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
    *payload = quick_payload(mmu, &r, 12, 12);
    mmu->counters.walks++;
    mmu->counters.fills[SIZE_4K]++;
    return 1;
}

/* The translation unit of one logical processor: what walk.c, run.c and invalidate.c share. */
#ifndef VTX_MMU_H
#define VTX_MMU_H

#include "core.h"
#include "ept.h"
#include "guest.h"
#include "mem.h"
#include "tlb.h"

#include <string.h>

/* What a cached translation must show for one class of access to be allowed at once:
 * (payload & mask) == need. Index: enum vtx_access, 3 bits. */
typedef struct {
    uint64_t need, mask;
} right_test;

struct vtx_mmu {
    vtx_memory *memory;
    vtx_shape shape;

    /* Derived from the context, anew whenever it changes (mmu_enter). */
    vtx_context context;
    guest_mode guest;
    ept_mode ept;
    uint32_t space;          /* of the current linear or combined mappings */
    uint32_t global_space;   /* of global translations; `space` again if there are none */
    uint32_t physical_space; /* of guest-physical mappings */
    right_test rights[8];
    uint8_t keys_on; /* protection keys are in force: rights alone do not decide */
    uint8_t identity; /* neither paging nor EPT: nothing to translate or to cache */

    vtx_tlb tlb;
    small_cache guest_caches[6]; /* by level 2 to 5 of the entry that they spare */
    small_cache ept_caches[6];
    small_cache nested;

    /* Last pages that the run loop may pass without a lookup; see run.c. */
    uint64_t filter[4];

    vtx_counters counters;
    uint64_t generation;
};

/* Derive everything from this context. */
void mmu_enter_new(vtx_mmu *mmu, const vtx_context *context);
/* Forget the current context, so that the next one is derived anew. */
void mmu_leave(vtx_mmu *mmu);

/* Make `context` the current one. Costs nothing if no member changed but the PML index. */
static inline void mmu_enter(vtx_mmu *mmu, const vtx_context *context) {
    if (memcmp(&mmu->context, context, offsetof(vtx_context, pml_index)) != 0)
        mmu_enter_new(mmu, context);
}

/* Forget the run loop's last pages. */
static inline void mmu_clear_filter(vtx_mmu *mmu) {
    for (int i = 0; i < 4; i++)
        mmu->filter[i] = ~0ull;
}

/* ---- walk.c ------------------------------------------------------------------------------- */

typedef struct {
    vtx_mmu *mmu;
    vtx_context *context;
    vtx_walk *out;
    vtx_step *steps; /* NULL: do not record */
    uint32_t capacity;
    uint8_t caches; /* use and fill the paging-structure caches and the nested TLB */
    uint8_t guest_level; /* the guest level that EPT walks serve now, for the record */
} walker;

/* Walk for a linear address; on VTX_OK *payload and *size describe the translation for the TLBs. */
uint32_t walk_linear(walker *w, uint64_t gva, uint32_t access, uint64_t *payload,
                     enum tlb_size *size);
/* Walk EPT for a guest-physical address that software does not reach through paging. */
uint32_t walk_guest_physical(walker *w, uint64_t gpa, uint32_t access);

/* ---- translate.c -------------------------------------------------------------------------- */

/* One page of an access through the TLBs. Counts a lookup only if it completes. */
uint32_t mmu_translate_page(walker *w, uint64_t gva, uint32_t access, tlb_entry **entry);

static inline int rights_allow(const vtx_mmu *mmu, uint64_t payload, uint32_t access) {
    const right_test *test = &mmu->rights[access & 7];
    return (payload & test->mask) == test->need;
}
/* Rights and protection keys. */
static inline int mmu_allows(const vtx_mmu *mmu, uint64_t payload, uint32_t access) {
    if (!rights_allow(mmu, payload, access))
        return 0;
    return !mmu->keys_on ||
           !guest_key_fault(&mmu->guest, payload >> PAYLOAD_KEY_SHIFT & 15,
                            (payload & RIGHT_U) != 0, access);
}

/* ---- invalidate.c ------------------------------------------------------------------------- */

/* An EPT violation invalidates what translated the address; a page fault what translated the linear
 * address under the current PCID (SDM, "Operations that Invalidate Cached Mappings"). */
void mmu_forget_linear(vtx_mmu *mmu, uint64_t gva);
void mmu_forget_guest_physical(vtx_mmu *mmu, uint64_t gpa);

#endif

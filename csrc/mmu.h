/* The translation unit of one logical processor: what walk.c, run.c and invalidate.c share. */
#ifndef VTX_MMU_H
#define VTX_MMU_H

#include "cache.h"
#include "core.h"
#include "data_cache.h"
#include "ept.h"
#include "guest.h"
#include "mem.h"
#include "tlb.h"
#include "walk_fast.h"

#include <string.h>

/* What a cached translation must show for one class of access to be allowed at once:
 * (payload & mask) == need. Index: enum vtx_access, 3 bits. */
typedef struct {
    uint64_t need, mask;
} right_test;

/* What the run loop looks at before it makes a lookup: a directory of pages that are in one
 * first-level array a side. A hit there takes no more than a stamp, for the array's LRU order. A
 * word of it:
 *
 *   47..12 page   11..4 key   3..0 kinds of access that are not allowed there
 *
 * The key tells what was written since the last change of context or invalidation from what is
 * older. Arrays of 4 are by kind of access, arrays of 2 by side. */
typedef struct {
    uint64_t word;
    uint64_t *stamp; /* of the entry that holds the page */
} front_slot;

/* One side where lookups are simple: one first-level array of its own with LRU stamps, one array of
 * the second level with LRU in nibbles, both for 4-KByte pages, 4-level paging without protection
 * keys. */
typedef struct {
    tlb_array *l1; /* NULL: they are not */
    tlb_array *l2;
    uint64_t *l1_hits, *l1_misses, *l2_hits, *l2_misses; /* counters */
} front_simple;

enum { FRONT_KEY = 0x10, FRONT_KEYS = 0xFF, FRONT_SLOTS = 256, FRONT_ENTRIES = 1 << 16 };

typedef struct {
    front_slot *base[4];
    uint64_t compared[4]; /* bits of a word */
    uint64_t passed[4];   /* 1 for this kind, in counts of 16 bits */
    uint64_t page_mask[4]; /* of the page's address in a record */
    uint32_t shift[4];
    uint64_t key;        /* in place */
    tlb_array *array[2]; /* NULL: the front is not in use */
    front_simple simple[2];
    uint8_t *slot_of[2]; /* by entry of the array: the slot that it may have */
    front_slot *slots;   /* FRONT_SLOTS a side */
    uint8_t size[2];     /* the page size that it is for (enum tlb_size) */
    uint8_t misfits[2];
} run_front;

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
    walk_tests tests;
    uint8_t tests_set; /* `tests` are made when the first walk asks */
    uint8_t keys_on;  /* protection keys are in force: rights alone do not decide */
    uint8_t identity; /* neither paging nor EPT: nothing to translate or to cache */

    vtx_tlb tlb;
    small_cache guest_caches[6]; /* by level 2 to 5 of the entry that they spare */
    small_cache ept_caches[6];
    small_cache nested;
    uint8_t has_caches; /* paging-structure caches or a nested TLB */

    data_caches data; /* what the references of walks go through */

    run_front front; /* see front.c */

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

/* The fast walk's tests for the current context. */
static inline const walk_tests *mmu_tests(vtx_mmu *mmu) {
    if (!mmu->tests_set) {
        /* Mode-based execute control and page-modification logging have a place in them. */
        const uint32_t odd =
            mmu->context.controls & ~(uint32_t)(VTX_ENABLE_EPT | VTX_MODE_BASED_EXECUTE |
                                                VTX_ENABLE_PML | VTX_SUB_PAGE_WRITE);
        /* With data caches walk.c makes every walk: it makes its references one by one. */
        walk_tests_set(&mmu->tests, &mmu->guest, &mmu->ept, mmu->memory, odd | mmu->data.any);
        mmu->tests_set = 1;
    }
    return &mmu->tests;
}

/* ---- front.c -------------------------------------------------------------------------------- */

int front_init(vtx_mmu *mmu);
void front_free(vtx_mmu *mmu);
/* Nothing that the fronts say holds any longer. */
void front_forget(vtx_mmu *mmu);
/* Make the access if its page is in the front's array with the rights needed; then the front knows
 * it. 0 if it takes a full lookup. */
int front_find(vtx_mmu *mmu, uint32_t kind, uint64_t gva);
/* A lookup of `gva` for a record of this kind ended at `entry` of the first level (or NULL), which
 * may have been filled for it. */
void front_note(vtx_mmu *mmu, uint32_t kind, uint64_t gva, const tlb_entry *entry);

/* ---- walk.c --------------------------------------------------------------------------------- */

typedef struct {
    vtx_mmu *mmu;
    vtx_context *context;
    vtx_walk *out;
    vtx_step *steps; /* NULL: do not record */
    uint32_t capacity;
    uint8_t caches;      /* use and fill the paging-structure caches and the nested TLB */
    uint8_t guest_level; /* the guest level that EPT walks serve now; 0: the access itself */
    uint8_t hlat;        /* HLAT paging is under way */
    uint8_t unverified;  /* a guest entry's EPT leaf does not allow paging writes (bit 58) */
} walker;

/* Walk for a linear address; on VTX_OK *payload and *size describe the translation for the TLBs. */
uint32_t walk_linear(walker *w, uint64_t gva, uint32_t access, uint64_t *payload,
                     enum tlb_size *size);
/* The same where it takes no decision (walk_quick.c); 0, and nothing done, where it does. */
int walk_quick(walker *w, uint64_t gva, uint32_t access, uint64_t *payload, enum tlb_size *size);
/* walk_quick with caches for the run loop, for 4-KByte pages; counts the walk as well. */
int walk_for_miss(vtx_mmu *mmu, uint64_t gva, uint32_t access, uint64_t *payload);
/* Count walks of 24 references, 4-KByte pages in both dimensions. */
void walk_count(vtx_counters *counters, uint64_t walks);
/* Walk EPT for a guest-physical address that software does not reach through paging. */
uint32_t walk_guest_physical(walker *w, uint64_t gpa, uint32_t access);

/* ---- translate.c ---------------------------------------------------------------------------- */

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
    return !mmu->keys_on || !guest_key_fault(&mmu->guest, payload >> PAYLOAD_KEY_SHIFT & 15,
                                             (payload & RIGHT_U) != 0, access);
}

/* ---- invalidate.c --------------------------------------------------------------------------- */

/* An EPT violation invalidates what translated the address; a page fault what translated the linear
 * address under the current PCID (SDM, "Operations that Invalidate Cached Mappings"). */
void mmu_forget_linear(vtx_mmu *mmu, uint64_t gva);
void mmu_forget_guest_physical(vtx_mmu *mmu, uint64_t gpa);

#endif

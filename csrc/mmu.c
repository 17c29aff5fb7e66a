/* Creation of a translation unit, and what it derives from the context it runs under. */
#include "mmu.h"

#include <stdlib.h>
#include <string.h>

#define EPTP_TABLE 0x000FFFFFFFFFF000ull /* bits 51:12 of the EPTP: the tag EP4TA */

/* ---- Shapes --------------------------------------------------------------------------------- */

static const char *array_error(const vtx_tlb_array *array) {
    if (array->level < 1 || array->level > 2)
        return "a TLB array must have level 1 or 2";
    if (array->sides < 1 || array->sides > 3)
        return "a TLB array must serve instructions, data or both";
    if (array->pages < 1 || array->pages > 7)
        return "a TLB array must hold pages of 4K, 2M or 1G";
    if (array->ways == 0 || array->entries == 0 || array->entries % array->ways)
        return "the entries of a TLB array must be a multiple of its ways, and both at least 1";
    const uint32_t sets = array->entries / array->ways;
    if (sets & (sets - 1))
        return "the number of sets of a TLB array must be a power of two";
    if (array->entries > 1u << 24)
        return "a TLB array can have at most 16777216 entries";
    if (array->replacement > VTX_RANDOM)
        return "the replacement of a TLB array must be LRU, tree-PLRU or random";
    if (array->replacement == VTX_TREE_PLRU && (array->ways & (array->ways - 1) || array->ways > 64))
        return "a TLB array with tree-PLRU must have 1, 2, 4, 8, 16, 32 or 64 ways";
    return NULL;
}

const char *vtx_shape_error(const vtx_shape *shape) {
    if (shape->maxphyaddr < 32 || shape->maxphyaddr > 52)
        return "MAXPHYADDR must be from 32 to 52";
    if (shape->linear_bits != 32 && shape->linear_bits != 48 && shape->linear_bits != 57)
        return "linear addresses must have 32, 48 or 57 bits";
    if (shape->array_count > VTX_MAX_ARRAYS)
        return "there can be at most 16 TLB arrays";
    const uint32_t caches[] = {shape->pml5, shape->pml4, shape->pdpt, shape->pd,
                               shape->guest_physical};
    for (unsigned i = 0; i < sizeof caches / sizeof *caches; i++)
        if (caches[i] > 1u << 16)
            return "a paging-structure cache or nested TLB can have at most 65536 entries";
    for (uint32_t i = 0; i < shape->array_count; i++) {
        const char *error = array_error(&shape->arrays[i]);
        if (error)
            return error;
    }
    for (unsigned i = 0; i < VTX_MAX_CACHES; i++) {
        const char *error = data_cache_error(&shape->caches[i]);
        if (error)
            return error;
    }
    return NULL;
}

static int caches_init(vtx_mmu *mmu) {
    const vtx_shape *shape = &mmu->shape;
    const uint32_t counts[6] = {0, 0, shape->pd, shape->pdpt, shape->pml4, shape->pml5};
    int ok = cache_init(&mmu->nested, shape->guest_physical);
    for (unsigned level = 2; level <= 5; level++) {
        ok &= cache_init(&mmu->guest_caches[level], counts[level]);
        ok &= cache_init(&mmu->ept_caches[level], counts[level]);
    }
    for (unsigned level = 2; level <= 5; level++)
        mmu->has_caches |= counts[level] != 0;
    mmu->has_caches |= shape->guest_physical != 0;
    return ok;
}

vtx_mmu *vtx_mmu_new(vtx_memory *memory, const vtx_shape *shape) {
    if (!memory || vtx_shape_error(shape))
        return NULL;
    vtx_mmu *mmu = calloc(1, sizeof *mmu);
    if (!mmu)
        return NULL;
    mmu->memory = memory;
    mmu->shape = *shape;
    if (!tlb_init(&mmu->tlb, shape) || !caches_init(mmu) || !front_init(mmu) ||
        !data_caches_init(&mmu->data, shape->caches)) {
        vtx_mmu_free(mmu);
        return NULL;
    }
    mmu_leave(mmu);
    return mmu;
}

void vtx_mmu_free(vtx_mmu *mmu) {
    if (!mmu)
        return;
    tlb_free(&mmu->tlb);
    front_free(mmu);
    data_caches_free(&mmu->data);
    cache_free(&mmu->nested);
    for (unsigned level = 2; level <= 5; level++) {
        cache_free(&mmu->guest_caches[level]);
        cache_free(&mmu->ept_caches[level]);
    }
    free(mmu);
}

vtx_counters *vtx_mmu_counters(vtx_mmu *mmu) {
    return &mmu->counters;
}

uint64_t vtx_mmu_generation(const vtx_mmu *mmu) {
    return mmu->generation;
}

/* ---- The context ---------------------------------------------------------------------------- */

/* Free the numbers of spaces that no cached mapping uses; if all are in use, forget all
 * mappings. */
static void collect_spaces(vtx_mmu *mmu) {
    tlb_mark_live(&mmu->tlb);
    cache_mark_live(&mmu->nested, mmu->tlb.spaces);
    for (unsigned level = 2; level <= 5; level++) {
        cache_mark_live(&mmu->guest_caches[level], mmu->tlb.spaces);
        cache_mark_live(&mmu->ept_caches[level], mmu->tlb.spaces);
    }
    uint32_t live = 0;
    for (uint32_t i = 1; i < mmu->tlb.space_limit; i++)
        live += mmu->tlb.spaces[i].chosen;
    if (live > SPACE_COUNT / 2)
        vtx_flush_all(mmu);
    else
        tlb_sweep_spaces(&mmu->tlb);
}

static uint32_t space_for(vtx_mmu *mmu, const tlb_space *key) {
    const uint32_t number = tlb_space_of(&mmu->tlb, key);
    if (number)
        mmu->tlb.spaces[number].filled = 1;
    return number;
}

/* "Information That May Be Cached": linear mappings carry VPID and PCID; with EPT, combined
 * mappings carry EP4TA, too, and without paging guest-physical mappings, which carry EP4TA
 * alone, are used. */
static int set_spaces(vtx_mmu *mmu) {
    const vtx_context *context = &mmu->context;
    const int ept = (context->controls & VTX_ENABLE_EPT) != 0;
    const int pcide = mmu->guest.paging >= PAGING_4LEVEL && (context->cr4 & CR4_PCIDE);
    tlb_space key = {.ep4ta = ept ? context->eptp & EPTP_TABLE : 0, .kind = SPACE_GUEST_PHYSICAL};
    mmu->physical_space = ept ? space_for(mmu, &key) : 0;
    if (ept && mmu->guest.paging == PAGING_NONE) {
        mmu->space = mmu->global_space = mmu->physical_space;
        return mmu->space != 0;
    }
    key.kind = ept ? SPACE_COMBINED : SPACE_LINEAR;
    key.vpid = context->vpid;
    key.pcid = pcide ? context->cr3 & 0xFFF : 0;
    mmu->space = space_for(mmu, &key);
    mmu->global_space = mmu->space;
    if (mmu->guest.pge) {
        key.pcid = 0;
        key.global = 1;
        mmu->global_space = space_for(mmu, &key);
    }
    return mmu->space && mmu->global_space && (!ept || mmu->physical_space);
}

/* The rights of a cached translation that let one class of access pass: guest.c's rules as a
 * mask. */
static right_test right_test_for(const guest_mode *mode, uint32_t access) {
    uint64_t need = 0;
    uint64_t deny = 0;
    if (access_is_fetch(access)) {
        need = RIGHT_EPT_X | RIGHT_X;
    } else {
        if ((access & 3) != VTX_STORE)
            need |= RIGHT_EPT_R;
        if (access_is_write(access))
            need |= RIGHT_EPT_W | RIGHT_D;
    }
    if (mode->paging != PAGING_NONE) {
        const int explicit_ac = mode->ac && !(access & VTX_IMPLICIT_SUPERVISOR);
        const int user = access_is_user(mode, access);
        if (user)
            need |= RIGHT_U;
        else if (access_is_fetch(access) ? mode->smep : (mode->smap && !explicit_ac))
            deny |= RIGHT_U;
        if (access_is_write(access) && (user || mode->wp))
            need |= RIGHT_W;
    }
    return (right_test){.need = need, .mask = need | deny};
}

void mmu_leave(vtx_mmu *mmu) {
    memset(&mmu->context, 0, sizeof mmu->context);
    mmu->context.cpl = 0xFFFF; /* no context has it: the next one is entered in full */
    front_forget(mmu);
}

void mmu_enter_new(vtx_mmu *mmu, const vtx_context *context) {
    mmu->context = *context;
    mmu->tests_set = 0;
    guest_mode_set(&mmu->guest, context, &mmu->shape);
    ept_mode_set(&mmu->ept, context, &mmu->shape);
    mmu->identity = mmu->guest.paging == PAGING_NONE && !mmu->ept.levels;
    mmu->keys_on = mmu->guest.pke || mmu->guest.pks;
    for (uint32_t access = 0; access < 8; access++)
        mmu->rights[access] = right_test_for(&mmu->guest, access);
    if (!set_spaces(mmu)) {
        collect_spaces(mmu);
        mmu->context = *context; /* a flush forgets it */
        set_spaces(mmu);
    }
    front_forget(mmu);
}

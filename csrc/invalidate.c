/* Invalidation: SDM volume 3, "Operations that Invalidate Cached Mappings" and, outside VMX,
 * "Caching Translation Information".
 *
 * Each operation chooses spaces, then removes their entries: all of them, or those for one
 * address. It removes exactly what the SDM requires; the SDM lets processors remove more. */
#include "mmu.h"

typedef struct {
    int linear;         /* linear and combined mappings */
    int guest_physical; /* guest-physical mappings */
    int any_vpid, any_vpid_but_0, any_pcid, any_ep4ta;
    int globals;         /* global translations, too */
    int not_without_ept; /* INVEPT: combined mappings, but not linear ones */
    uint16_t vpid, pcid;
    uint64_t ep4ta;
} choice;

static int chooses(const choice *c, const tlb_space *space) {
    if (space->kind == SPACE_FREE || !space->filled)
        return 0;
    if (c->not_without_ept && space->kind == SPACE_LINEAR)
        return 0;
    if (!c->any_ep4ta && space->ep4ta != c->ep4ta)
        return 0;
    if (space->kind == SPACE_GUEST_PHYSICAL)
        return c->guest_physical;
    if (!c->linear)
        return 0;
    if (c->any_vpid_but_0 ? space->vpid == 0 : (!c->any_vpid && space->vpid != c->vpid))
        return 0;
    if (space->global)
        return c->globals;
    return c->any_pcid || space->pcid == c->pcid;
}

/* Choose spaces; returns how many. */
static unsigned choose(vtx_mmu *mmu, const choice *c) {
    unsigned count = 0;
    for (uint32_t i = 1; i < mmu->tlb.space_limit; i++) {
        tlb_space *space = &mmu->tlb.spaces[i];
        space->chosen = (uint8_t)chooses(c, space);
        count += space->chosen;
    }
    return count;
}

static uint64_t remove_cached(vtx_mmu *mmu, const tlb_target *target, const tlb_target *tables) {
    const tlb_space *spaces = mmu->tlb.spaces;
    uint64_t removed = tlb_remove(&mmu->tlb, target);
    removed += cache_remove(&mmu->nested, spaces, target);
    for (unsigned level = 2; level <= 5; level++) {
        removed += cache_remove(&mmu->guest_caches[level], spaces, tables);
        removed += cache_remove(&mmu->ept_caches[level], spaces, tables);
    }
    return removed;
}

/* Remove what `target` names in the chosen spaces; from the paging-structure caches what `tables`
 * names. */
static void invalidate(vtx_mmu *mmu, const choice *c, const tlb_target *target,
                       const tlb_target *tables) {
    mmu->counters.invalidations++;
    mmu->generation++;
    if (!choose(mmu, c))
        return;
    mmu->counters.invalidated += remove_cached(mmu, target, tables);
    if (!target->by_address) /* nothing is left: the next flush need not look */
        for (uint32_t i = 1; i < mmu->tlb.space_limit; i++)
            mmu->tlb.spaces[i].filled &= !mmu->tlb.spaces[i].chosen;
    mmu_leave(mmu);
}

static const tlb_target everything = {0, 0};

void vtx_invlpg(vtx_mmu *mmu, const vtx_context *context, uint64_t gva) {
    mmu_enter(mmu, context);
    /* The page's translations for the current PCID, and global ones; all paging-structure-cache
     * entries of the current PCID, whatever their address. */
    const choice c = {.linear = 1,
                      .globals = 1,
                      .any_ep4ta = 1,
                      .vpid = context->vpid,
                      .pcid = mmu->tlb.spaces[mmu->space].pcid};
    const tlb_target page = {1, gva & mmu->guest.linear_mask};
    invalidate(mmu, &c, &page, &everything);
}

int vtx_invpcid(vtx_mmu *mmu, const vtx_context *context, uint32_t type, uint16_t pcid,
                uint64_t gva) {
    choice c = {.linear = 1, .any_ep4ta = 1, .vpid = context->vpid, .pcid = pcid};
    const tlb_target page = {1, gva};
    switch (type) {
    case 0: /* individual address: not global translations */
        invalidate(mmu, &c, &page, &page);
        return 1;
    case 1: /* single context: not global translations */
        break;
    case 2: /* all contexts, including global translations */
        c.globals = 1;
        c.any_pcid = 1;
        break;
    case 3: /* all contexts, except global translations */
        c.any_pcid = 1;
        break;
    default:
        return 0;
    }
    invalidate(mmu, &c, &everything, &everything);
    return 1;
}

void vtx_flush_pcid(vtx_mmu *mmu, const vtx_context *context, uint16_t pcid) {
    const choice c = {.linear = 1, .any_ep4ta = 1, .vpid = context->vpid, .pcid = pcid};
    invalidate(mmu, &c, &everything, &everything);
}

void vtx_flush_vpid(vtx_mmu *mmu, uint16_t vpid) {
    const choice c = {.linear = 1, .any_ep4ta = 1, .any_pcid = 1, .globals = 1, .vpid = vpid};
    invalidate(mmu, &c, &everything, &everything);
}

int vtx_invept(vtx_mmu *mmu, uint32_t type, uint64_t eptp) {
    /* Guest-physical and combined mappings of one EP4TA, or of all: all VPIDs and PCIDs. */
    choice c = {.linear = 1,
                .guest_physical = 1,
                .any_vpid = 1,
                .any_pcid = 1,
                .globals = 1,
                .not_without_ept = 1,
                .ep4ta = eptp & 0x000FFFFFFFFFF000ull};
    if (type != 1 && type != 2)
        return 0;
    if (type == 2)
        c.any_ep4ta = 1;
    invalidate(mmu, &c, &everything, &everything);
    return 1;
}

int vtx_invvpid(vtx_mmu *mmu, uint32_t type, uint16_t vpid, uint64_t gva) {
    choice c = {.linear = 1, .any_ep4ta = 1, .any_pcid = 1, .globals = 1, .vpid = vpid};
    const tlb_target page = {1, gva};
    switch (type) {
    case 0: /* individual address */
        invalidate(mmu, &c, &page, &page);
        return 1;
    case 1: /* single context */
        break;
    case 2: /* all contexts: every VPID but 0 */
        c.any_vpid_but_0 = 1;
        break;
    case 3: /* single context, retaining globals */
        c.globals = 0;
        break;
    default:
        return 0;
    }
    invalidate(mmu, &c, &everything, &everything);
    return 1;
}

void vtx_flush_all(vtx_mmu *mmu) {
    const choice c = {.linear = 1,
                      .guest_physical = 1,
                      .any_vpid = 1,
                      .any_pcid = 1,
                      .any_ep4ta = 1,
                      .globals = 1};
    invalidate(mmu, &c, &everything, &everything);
    for (unsigned i = 0; i < mmu->tlb.array_count; i++)
        mmu->tlb.arrays[i].present = 0;
    mmu->nested.present = 0;
    mmu->tlb.large = 0;
    for (uint32_t i = 1; i < mmu->tlb.space_limit; i++)
        mmu->tlb.spaces[i].chosen = 0;
    tlb_sweep_spaces(&mmu->tlb);
    mmu_leave(mmu);
}

/* ---- What faults invalidate ----------------------------------------------------------------- */

void mmu_forget_linear(vtx_mmu *mmu, uint64_t gva) {
    tlb_forget(&mmu->tlb, gva, mmu->space, mmu->global_space);
    for (unsigned level = 2; level <= 5; level++)
        if (mmu->guest_caches[level].used)
            cache_forget(&mmu->guest_caches[level],
                         cache_tag(gva, guest_shift(&mmu->guest, level), mmu->space));
    mmu->generation++;
    front_forget(mmu);
}

void mmu_forget_guest_physical(vtx_mmu *mmu, uint64_t gpa) {
    tlb_forget(&mmu->tlb, gpa, mmu->physical_space, mmu->physical_space);
    for (unsigned size = 0; size < 3; size++)
        cache_forget(&mmu->nested, tlb_tag(gpa, (enum tlb_size)size, mmu->physical_space));
    for (unsigned level = 2; level <= 5; level++)
        if (mmu->ept_caches[level].used)
            cache_forget(&mmu->ept_caches[level],
                         cache_tag(gpa, 3 + 9 * level, mmu->physical_space));
    mmu->generation++;
    front_forget(mmu);
}

/* EPT, laid out along the SDM's "The Extended Page Table Mechanism (EPT)". See ept.h. */
#include "ept.h"

#include <string.h>

static uint64_t bit_range(unsigned high, unsigned low) {
    return (~0ull >> (63 - high)) & (~0ull << low);
}

static int capability(const vtx_shape *shape, unsigned position) {
    return (int)(shape->ept_vpid_cap >> position & 1);
}

void ept_mode_set(ept_mode *mode, const vtx_context *context, const vtx_shape *shape) {
    memset(mode, 0, sizeof *mode);
    if (!(context->controls & VTX_ENABLE_EPT))
        return;
    const unsigned width = shape->maxphyaddr;
    const uint64_t beyond = width <= 51 ? bit_range(51, width) : 0;
    mode->address_mask = bit_range(width - 1, 12);
    mode->root = context->eptp & mode->address_mask;
    mode->levels = (uint8_t)((context->eptp >> 3 & 7) + 1);
    if (mode->levels != 5)
        mode->levels = 4; /* VM entry refuses every other length */
    mode->flags = (context->eptp & EPTP_AD) != 0;
    mode->execute_only = (uint8_t)capability(shape, EPT_CAP_EXECUTE_ONLY);
    mode->advanced = (uint8_t)capability(shape, EPT_CAP_ADVANCED);
    mode->mode_based = (context->controls & VTX_MODE_BASED_EXECUTE) != 0;
    mode->present_mask = EPT_R | EPT_W | EPT_X | (mode->mode_based ? EPT_XU : 0u);
    mode->leaf_levels = (uint8_t)(1u << 1 | capability(shape, EPT_CAP_2M) << 2 |
                                  capability(shape, EPT_CAP_1G) << 3);
    for (unsigned level = 1; level <= 5; level++) {
        /* Entries that reference a table reserve bits 7:3 (bit 7 of a PDE or PDPTE selects a page,
         * and without that page size it is reserved, too). */
        mode->reserved_table[level] = beyond | bit_range(7, 3);
        /* Entries that map a page reserve the address bits below the page size. */
        mode->reserved_leaf[level] = beyond;
        if (level > 1)
            mode->reserved_leaf[level] |= bit_range(2 + 9 * level, 12);
    }
}

enum ept_step ept_begin(const ept_mode *mode, ept_walk *walk, uint64_t gpa) {
    walk->gpa = gpa;
    walk->leaf = 0;
    walk->level = mode->levels;
    walk->rights = EPT_R | EPT_W | EPT_X | EPT_XU;
    walk->entry_hpa = ept_entry_address(mode->root, gpa, mode->levels);
    /* "EPT Translation Mechanism": 4-level EPT translates 48 bits; a wider address is a violation,
     * as if an entry were not present. */
    if (mode->levels == 4 && gpa >> 48)
        return EPT_NOT_PRESENT;
    return EPT_DESCEND;
}

/* "EPT Misconfigurations", rights: write without read; execute without read where the processor
 * has no execute-only translations. */
static int rights_malformed(const ept_mode *mode, uint64_t entry) {
    if (entry & EPT_R)
        return 0;
    if (entry & EPT_W)
        return 1;
    const uint64_t execute = EPT_X | (mode->mode_based ? EPT_XU : 0u);
    return (entry & execute) && !mode->execute_only;
}

/* Memory types: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB; 2, 3 and 7 are reserved. */
static int type_malformed(uint64_t entry) {
    return 0x8C >> (entry >> EPT_TYPE_SHIFT & 7) & 1;
}

enum ept_step ept_use(const ept_mode *mode, ept_walk *walk, uint64_t entry) {
    /* "If bits 2:0 are all 0 (and bit 10, with mode-based execute control), the entry is not
     * present": an EPT violation, and nothing else in the entry is looked at. */
    if (!(entry & mode->present_mask))
        return EPT_NOT_PRESENT;
    if (rights_malformed(mode, entry))
        return EPT_MALFORMED;
    walk->rights &= (uint32_t)entry;
    const unsigned level = walk->level;
    if (level == 1 || ((entry & EPT_PS) && (mode->leaf_levels >> level & 1))) {
        if ((entry & mode->reserved_leaf[level]) || type_malformed(entry))
            return EPT_MALFORMED;
        walk->leaf = entry;
        walk->shift = (uint8_t)(3 + 9 * level);
        const uint64_t offset = (1ull << walk->shift) - 1;
        walk->hpa = (entry & mode->address_mask & ~offset) | (walk->gpa & offset);
        return EPT_DONE;
    }
    if (entry & mode->reserved_table[level])
        return EPT_MALFORMED;
    walk->level--;
    walk->entry_hpa = ept_entry_address(entry & mode->address_mask, walk->gpa, walk->level);
    return EPT_DESCEND;
}

uint32_t ept_needs(const ept_mode *mode, uint32_t qualification_access, int user_linear) {
    uint32_t needs = qualification_access & (EPTQ_READ | EPTQ_WRITE);
    if (qualification_access & EPTQ_FETCH)
        needs |= mode->mode_based && user_linear ? EPT_XU : EPT_X;
    return needs;
}

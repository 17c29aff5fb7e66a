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
    mode->sub_page = (context->controls & VTX_SUB_PAGE_WRITE) != 0;
    mode->paging_write = (context->controls & VTX_PAGING_WRITE) != 0;
    mode->verify = (context->controls & VTX_VERIFY_GUEST_PAGING) != 0;
    mode->present_mask = EPT_R | EPT_W | EPT_X | (mode->mode_based ? EPT_XU : 0u);
    /* An entry maps a page at level 1, and above with bit 7, where there are pages of that size. */
    mode->leaf_mask[1] = ~0ull;
    mode->leaf_mask[2] = capability(shape, EPT_CAP_2M) ? EPT_PS : 0;
    mode->leaf_mask[3] = capability(shape, EPT_CAP_1G) ? EPT_PS : 0;
    for (unsigned level = 1; level <= 5; level++) {
        /* Entries that reference a table reserve bits 7:3: bit 7, too, for with that page size it
         * selects a page. */
        mode->reserved[0][level] = beyond | bit_range(7, 3);
        /* Entries that map a page reserve the address bits below the page size. */
        mode->reserved[1][level] = beyond | (level > 1 ? bit_range(2 + 9 * level, 12) : 0);
    }
}

uint32_t ept_needs(const ept_mode *mode, uint32_t qualification_access, int user_linear) {
    uint32_t needs = qualification_access & (EPTQ_READ | EPTQ_WRITE);
    if (qualification_access & EPTQ_FETCH)
        needs |= mode->mode_based && user_linear ? EPT_XU : EPT_X;
    return needs;
}

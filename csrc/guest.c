/* Guest paging, laid out along the SDM's chapter "Paging". See guest.h. */
#include "guest.h"

#include <string.h>

/* Bits high..low, both included. */
static uint64_t bit_range(unsigned high, unsigned low) {
    return (~0ull >> (63 - high)) & (~0ull << low);
}

/* "Paging-Mode Enabling": CR0.PG, CR4.PAE, EFER.LMA (LME with PG), CR4.LA57. */
static enum guest_paging select_paging(const vtx_context *context) {
    if (!(context->cr0 & CR0_PG))
        return PAGING_NONE;
    if (!(context->cr4 & CR4_PAE))
        return PAGING_32BIT;
    if (!(context->efer & EFER_LMA))
        return PAGING_PAE;
    return context->cr4 & CR4_LA57 ? PAGING_5LEVEL : PAGING_4LEVEL;
}

/* 32-bit paging reserves bits only in a PDE that maps a 4-MByte page: 21:(M-19), where M is the
 * smaller of 40 and MAXPHYADDR (PSE-36). */
static void reserve_32bit(guest_mode *mode, unsigned maxphyaddr) {
    unsigned m = maxphyaddr < 40 ? maxphyaddr : 40;
    mode->reserved_leaf[2] = bit_range(21, m - 19);
}

static void reserve_64bit_entries(guest_mode *mode, unsigned maxphyaddr) {
    /* PAE entries reserve bits 62:MAXPHYADDR, the entries of 4- and 5-level paging
     * 51:MAXPHYADDR. */
    const unsigned top = mode->paging == PAGING_PAE ? 62 : 51;
    uint64_t common = maxphyaddr <= top ? bit_range(top, maxphyaddr) : 0;
    /* Bit 63 is XD only if EFER.NXE is 1. */
    if (!mode->nxe)
        common |= PTE_XD;
    for (unsigned level = 1; level <= 5; level++) {
        mode->reserved[level] = common;
        mode->reserved_leaf[level] = common;
    }
    /* PML5Es and PML4Es have no page-size bit; PDPTEs only with 1-GByte pages. */
    mode->reserved[5] |= PTE_PS;
    mode->reserved[4] |= PTE_PS;
    if (!mode->page_1g)
        mode->reserved[3] |= PTE_PS;
    /* Address bits below the page size, above the PAT bit (12). */
    mode->reserved_leaf[3] |= bit_range(29, 13);
    mode->reserved_leaf[2] |= bit_range(20, 13);
}

void guest_mode_set(guest_mode *mode, const vtx_context *context, const vtx_shape *shape) {
    memset(mode, 0, sizeof *mode);
    mode->paging = (uint8_t)select_paging(context);
    const int four_or_five = mode->paging >= PAGING_4LEVEL;
    mode->wp = (context->cr0 & CR0_WP) != 0;
    mode->pse = (context->cr4 & CR4_PSE) != 0;
    mode->pge = (context->cr4 & CR4_PGE) != 0;
    mode->smep = (context->cr4 & CR4_SMEP) != 0;
    mode->smap = (context->cr4 & CR4_SMAP) != 0;
    mode->ac = (context->rflags & RFLAGS_AC) != 0;
    mode->user = context->cpl == 3;
    mode->page_1g = four_or_five && shape->page_1g;
    /* XD exists in PAE, 4-level and 5-level paging; protection keys in the last two. */
    mode->nxe = mode->paging >= PAGING_PAE && (context->efer & EFER_NXE);
    mode->pke = four_or_five && (context->cr4 & CR4_PKE);
    mode->pks = four_or_five && (context->cr4 & CR4_PKS);
    mode->pkru = context->pkru;
    mode->pkrs = context->pkrs;
    mode->fetch_flag = mode->smep || mode->nxe;
    mode->address_mask = bit_range(shape->maxphyaddr - 1, 12);
    mode->root = context->cr3 & mode->address_mask;
    memcpy(mode->pdptes, context->pdptes, sizeof mode->pdptes);
    static const uint8_t levels[] = {0, 2, 2, 4, 5};
    mode->levels = levels[mode->paging];
    mode->linear_bits = mode->paging == PAGING_5LEVEL ? 57 : four_or_five ? 48 : 32;
    mode->hlat = four_or_five && (context->controls & VTX_ENABLE_HLAT);
    mode->hlat_root = context->hlatp & mode->address_mask;
    if (context->hlat_prefix_size)
        mode->hlat_prefix = bit_range(63, 64 - (context->hlat_prefix_size & 63));
    mode->linear_mask = four_or_five ? ~0ull : 0xFFFFFFFFull;
    if (mode->paging == PAGING_32BIT) {
        mode->root &= 0xFFFFFFFFull;
        reserve_32bit(mode, shape->maxphyaddr);
    } else if (mode->paging != PAGING_NONE) {
        reserve_64bit_entries(mode, shape->maxphyaddr);
    }
}

static uint64_t entry_address(const guest_mode *mode, const guest_walk *walk, uint64_t table) {
    const unsigned shift = guest_shift(mode, walk->level);
    if (mode->paging == PAGING_32BIT)
        return table | (walk->gva >> shift & 1023) << 2;
    return table | (walk->gva >> shift & 511) << 3;
}

enum guest_step guest_begin(const guest_mode *mode, guest_walk *walk, uint64_t gva) {
    memset(walk, 0, sizeof *walk);
    walk->gva = gva & mode->linear_mask;
    walk->user = walk->writable = walk->executable = 1;
    walk->level = mode->levels;
    uint64_t table = mode->root;
    if (mode->paging == PAGING_NONE) {
        /* Without paging a linear address is the physical address, with every right. */
        walk->gpa = walk->gva;
        walk->leaf = PTE_P | PTE_W | PTE_U | PTE_A | PTE_D;
        return GUEST_DONE;
    }
    if (mode->paging == PAGING_PAE) {
        /* The PDPTE is a register chosen by bits 31:30; only its P flag is looked at now, its
         * reserved bits were when it was loaded. It gives no access rights. */
        uint64_t pdpte = mode->pdptes[walk->gva >> 30 & 3];
        if (!(pdpte & PTE_P))
            return GUEST_NOT_PRESENT;
        table = pdpte & mode->address_mask;
    }
    walk->entry_gpa = entry_address(mode, walk, table);
    return GUEST_DESCEND;
}

void guest_resume(const guest_mode *mode, guest_walk *walk, uint64_t table_gpa) {
    walk->entry_gpa = entry_address(mode, walk, table_gpa);
}

/* Does an entry of the walk's level with this value map a page? */
static int maps_page(const guest_mode *mode, const guest_walk *walk, uint64_t entry) {
    if (walk->level == 1)
        return 1;
    if (!(entry & PTE_PS))
        return 0;
    switch (mode->paging) {
    case PAGING_32BIT:
        return mode->pse; /* PS is ignored with CR4.PSE = 0 */
    case PAGING_PAE:
        return walk->level == 2;
    default:
        return walk->level == 2 || (walk->level == 3 && mode->page_1g);
    }
}

/* The page frame of a leaf, with the offset of the linear address in it. */
static uint64_t leaf_gpa(const guest_mode *mode, const guest_walk *walk, uint64_t entry) {
    const uint64_t offset_mask = (1ull << walk->shift) - 1;
    uint64_t frame = entry & mode->address_mask & ~offset_mask;
    if (mode->paging == PAGING_32BIT) {
        frame &= 0xFFFFFFFFull;
        if (walk->level == 2) /* PSE-36: bits 20:13 are address bits 39:32 */
            frame |= (entry >> 13 & 0xFF) << 32;
    }
    return frame | (walk->gva & offset_mask);
}

enum guest_step guest_use(const guest_mode *mode, guest_walk *walk, uint64_t entry) {
    /* "If a paging-structure entry's P flag is 0 or it sets any reserved bit, there is no
     * translation": P first, for with P = 0 nothing else in the entry is looked at. */
    if (!(entry & PTE_P))
        return GUEST_NOT_PRESENT;
    const int leaf = maps_page(mode, walk, entry);
    if (entry & (mode->reserved[walk->level] | (leaf ? mode->reserved_leaf[walk->level] : 0)))
        return GUEST_RESERVED;
    /* "Determination of Access Rights": every entry used must grant U/S and R/W; XD in any
     * denies. */
    walk->user &= (entry & PTE_U) != 0;
    walk->writable &= (entry & PTE_W) != 0;
    walk->executable &= !(mode->nxe && (entry & PTE_XD));
    if (!leaf) {
        uint64_t table = entry & mode->address_mask;
        if (mode->paging == PAGING_32BIT)
            table &= 0xFFFFFFFFull;
        walk->level--;
        walk->entry_gpa = entry_address(mode, walk, table);
        return GUEST_DESCEND;
    }
    walk->leaf = entry;
    walk->shift = (uint8_t)guest_shift(mode, walk->level);
    walk->gpa = leaf_gpa(mode, walk, entry);
    walk->global = mode->pge && (entry & PTE_G);
    walk->key = mode->paging >= PAGING_4LEVEL ? (uint8_t)(entry >> 59 & 15) : 0;
    return GUEST_DONE;
}

static uint32_t access_bits(const guest_mode *mode, uint32_t access) {
    return (access_is_write(access) ? PF_W : 0u) | (access_is_user(mode, access) ? PF_U : 0u) |
           (access_is_fetch(access) && mode->fetch_flag ? PF_ID : 0u);
}

uint32_t guest_entry_fault(const guest_mode *mode, uint32_t access, int reserved) {
    return access_bits(mode, access) | (reserved ? PF_P | PF_RSVD : 0u);
}

uint32_t guest_key_fault(const guest_mode *mode, unsigned key, int user_page, uint32_t access) {
    /* "Protection Keys": data accesses only; PKRU for user-mode addresses, IA32_PKRS for the
     * others. Bit 2i denies access, bit 2i+1 denies writes (by supervisor mode only with
     * CR0.WP). */
    if (access_is_fetch(access) || !(user_page ? mode->pke : mode->pks))
        return 0;
    const uint32_t rights = (user_page ? mode->pkru : mode->pkrs) >> (2 * key) & 3;
    const int write_counts = mode->wp || (user_page && access_is_user(mode, access));
    if ((rights & 1) || ((rights & 2) && access_is_write(access) && write_counts))
        return PF_PK;
    return 0;
}

/* "Determination of Access Rights", supervisor-mode accesses. */
static int supervisor_may(const guest_mode *mode, const guest_walk *walk, uint32_t access) {
    if (access_is_fetch(access)) /* user page: not with SMEP */
        return walk->executable && !(walk->user && mode->smep);
    /* Data, user page: with SMAP only an explicit access with RFLAGS.AC = 1. */
    if (walk->user && mode->smap && !(mode->ac && !(access & VTX_IMPLICIT_SUPERVISOR)))
        return 0;
    return !access_is_write(access) || walk->writable || !mode->wp;
}

/* The same, user-mode accesses. */
static int user_may(const guest_walk *walk, uint32_t access) {
    if (!walk->user)
        return 0;
    if (access_is_fetch(access))
        return walk->executable;
    return !access_is_write(access) || walk->writable;
}

uint32_t guest_permission(const guest_mode *mode, const guest_walk *walk, uint32_t access) {
    if (mode->paging == PAGING_NONE)
        return 0;
    const int allowed =
        access_is_user(mode, access) ? user_may(walk, access) : supervisor_may(mode, walk, access);
    const uint32_t key = guest_key_fault(mode, walk->key, walk->user, access);
    if (allowed && !key)
        return 0;
    return PF_P | key | access_bits(mode, access);
}

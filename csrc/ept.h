/* EPT: guest-physical address to host-physical address, one entry at a time.
 *
 * This file and ept.c know nothing of guest paging or of memory. SDM volume 3, "The Extended Page
 * Table Mechanism (EPT)". */
#ifndef VTX_EPT_H
#define VTX_EPT_H

#include "core.h"

/* EPT entries:
 *
 *   63  62 61   60  59 58 57  56..52 51....12 11 10 9 8 7  6    5..3  2 1 0
 *   SVE ig SPPW SSS ig PW VGP ign    address  ig XU D A PS IPAT type  X W R   */
enum {
    EPT_R = 1u << 0,
    EPT_W = 1u << 1,
    EPT_X = 1u << 2,
    EPT_TYPE_SHIFT = 3,
    EPT_IPAT = 1u << 6,
    EPT_PS = 1u << 7,
    EPT_A = 1u << 8,
    EPT_D = 1u << 9,
    EPT_XU = 1u << 10,
    /* Not a bit of entries: in ept_walk.rights, the leaf had bit 58 (paging-write access). */
    EPT_PAGING_WRITE = 1u << 11,
};
enum { EPT_VGP_BIT = 57, EPT_PW_BIT = 58, EPT_SPP_BIT = 61 };

/* EPTP:  11..8 reserved | 7 SSS | 6 A/D | 5..3 walk length - 1 | 2..0 memory type */
enum { EPTP_AD = 1u << 6 };

/* Bits of IA32_VMX_EPT_VPID_CAP. */
enum { EPT_CAP_EXECUTE_ONLY = 0, EPT_CAP_2M = 16, EPT_CAP_1G = 17, EPT_CAP_ADVANCED = 22 };

/* Exit qualification for EPT violations. */
enum {
    EPTQ_READ = 1u << 0,
    EPTQ_WRITE = 1u << 1,
    EPTQ_FETCH = 1u << 2,
    EPTQ_R_SHIFT = 3, /* bits 5:3: AND of bits 2:0 of the entries used */
    EPTQ_XU = 1u << 6,
    EPTQ_GLA_VALID = 1u << 7,
    EPTQ_TRANSLATED = 1u << 8,
    EPTQ_USER = 1u << 9,
    EPTQ_WRITABLE = 1u << 10,
    EPTQ_XD = 1u << 11,
    EPTQ_VERIFICATION = 1u << 15,
};

typedef struct {
    uint64_t root;
    uint64_t address_mask;
    uint64_t present_mask;
    uint64_t leaf_mask[6];   /* by level: an entry with one of these bits maps a page */
    uint64_t reserved[2][6]; /* bits that must be 0 in an entry that names a table (0), a page (1) */
    uint8_t levels;          /* 0: EPT is off */
    uint8_t flags;           /* accessed and dirty flags are on */
    uint8_t execute_only, mode_based, advanced;
    uint8_t sub_page, paging_write, verify;
} ept_mode;

typedef struct {
    uint64_t gpa;
    uint64_t entry_hpa; /* where the next entry is */
    uint64_t hpa;       /* when done: the translation */
    uint64_t leaf;
    uint32_t rights; /* AND of bits R, W, X, XU over the entries used */
    uint32_t level;  /* of the entry at entry_hpa */
    uint32_t shift;  /* when done: log2 of the page size */
} ept_walk;

enum ept_step { EPT_DESCEND, EPT_DONE, EPT_NOT_PRESENT, EPT_MALFORMED };

void ept_mode_set(ept_mode *mode, const vtx_context *context, const vtx_shape *shape);

static inline uint64_t ept_entry_address(uint64_t table, uint64_t gpa, unsigned level) {
    return table | (gpa >> (3 + 9 * level) & 511) << 3;
}

/* Start a walk; EPT_NOT_PRESENT if the address is wider than the walk translates. */
static inline enum ept_step ept_begin(const ept_mode *mode, ept_walk *walk, uint64_t gpa) {
    walk->gpa = gpa;
    walk->leaf = 0;
    walk->level = mode->levels;
    walk->rights = EPT_R | EPT_W | EPT_X | EPT_XU;
    walk->entry_hpa = ept_entry_address(mode->root, gpa, mode->levels);
    /* "EPT Translation Mechanism": 4-level EPT translates 48 bits; a wider address is a violation,
     * as if an entry were not present. */
    return mode->levels == 4 && gpa >> 48 ? EPT_NOT_PRESENT : EPT_DESCEND;
}

/* "EPT Misconfigurations", rights: write without read; execute without read where the processor has
 * no execute-only translations. */
static inline int ept_rights_malformed(const ept_mode *mode, uint64_t entry) {
    if (entry & EPT_R)
        return 0;
    if (entry & EPT_W)
        return 1;
    const uint64_t execute = EPT_X | (mode->mode_based ? EPT_XU : 0u);
    return (entry & execute) && !mode->execute_only;
}

/* Memory types: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB; 2, 3 and 7 are reserved. */
static inline int ept_type_malformed(uint64_t entry) {
    return 0x8C >> (entry >> EPT_TYPE_SHIFT & 7) & 1;
}

/* Use the entry at walk->entry_hpa. */
static inline enum ept_step ept_use(const ept_mode *mode, ept_walk *walk, uint64_t entry) {
    const unsigned level = walk->level;
    /* "If bits 2:0 are all 0 (and bit 10, with mode-based execute control), the entry is not
     * present": an EPT violation, and nothing else in the entry is looked at. */
    if (!(entry & mode->present_mask))
        return EPT_NOT_PRESENT;
    const int leaf = (entry & mode->leaf_mask[level]) != 0;
    if (ept_rights_malformed(mode, entry) || (entry & mode->reserved[leaf][level]))
        return EPT_MALFORMED;
    walk->rights &= (uint32_t)entry;
    if (!leaf) {
        walk->level = level - 1;
        walk->entry_hpa = ept_entry_address(entry & mode->address_mask, walk->gpa, level - 1);
        return EPT_DESCEND;
    }
    if (ept_type_malformed(entry))
        return EPT_MALFORMED;
    /* "EPT paging-write control": a leaf that is not readable must not allow paging writes. */
    if (mode->paging_write && !(entry & EPT_R) && entry >> EPT_PW_BIT & 1)
        return EPT_MALFORMED;
    walk->leaf = entry;
    walk->shift = 3 + 9 * level;
    const uint64_t offset = (1ull << walk->shift) - 1;
    walk->hpa = (entry & mode->address_mask & ~offset) | (walk->gpa & offset);
    return EPT_DONE;
}

/* The rights that an access needs, in terms of entry bits: what `ept_walk.rights` must hold. */
uint32_t ept_needs(const ept_mode *mode, uint32_t qualification_access, int user_linear);

#endif

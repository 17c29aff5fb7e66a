/* Guest paging: linear address to guest-physical address, one entry at a time.
 *
 * This file and guest.c know nothing of EPT or of memory: whoever drives the walk reads each entry
 * and hands its value in. SDM volume 3, chapter "Paging". */
#ifndef VTX_GUEST_H
#define VTX_GUEST_H

#include "core.h"

enum {
    CR0_WP = 1u << 16,
    CR0_PG = 1u << 31,
    CR4_PSE = 1u << 4,
    CR4_PAE = 1u << 5,
    CR4_PGE = 1u << 7,
    CR4_LA57 = 1u << 12,
    CR4_PCIDE = 1u << 17,
    CR4_SMEP = 1u << 20,
    CR4_SMAP = 1u << 21,
    CR4_PKE = 1u << 22,
    CR4_PKS = 1u << 24,
    EFER_LMA = 1u << 10,
    EFER_NXE = 1u << 11,
    RFLAGS_AC = 1u << 18,
};

/* Paging-structure entries, all modes:
 *
 *   63 62..59 58..52 51..............12 11..9 8 7      6 5 4   3   2   1   0
 *   XD  key   ignored      address      ign   G PS/PAT D A PCD PWT U/S R/W P   */
enum {
    PTE_P = 1u << 0,
    PTE_W = 1u << 1,
    PTE_U = 1u << 2,
    PTE_PWT = 1u << 3,
    PTE_PCD = 1u << 4,
    PTE_A = 1u << 5,
    PTE_D = 1u << 6,
    PTE_PS = 1u << 7,
    PTE_PAT = 1u << 7, /* in a 4-KByte PTE */
    PTE_G = 1u << 8,
    PTE_RESTART = 1u << 11, /* HLAT paging: go on with ordinary paging */
    PTE_PAT_LARGE = 1u << 12,
};
#define PTE_XD (1ull << 63)

/* Page-fault error code (SDM, "Page-Fault Exceptions"). */
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_ID = 16, PF_PK = 32, PF_HLAT = 128 };

enum guest_paging { PAGING_NONE, PAGING_32BIT, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL };

/* The paging mode that CR0, CR4, EFER and the processor's widths select. */
typedef struct {
    uint64_t root; /* CR3's table address; PAE: unused, see pdptes */
    uint64_t hlat_root;
    uint64_t hlat_prefix; /* bits of a linear address that must all be 1 for HLAT paging */
    uint64_t pdptes[4];
    uint64_t linear_mask;      /* bits of a linear address that exist in this mode */
    uint64_t address_mask;     /* bits MAXPHYADDR-1:12 */
    uint64_t reserved[6];      /* by level: bits that must be 0 in every entry */
    uint64_t reserved_leaf[6]; /* by level: and in an entry that maps a page */
    uint32_t pkru, pkrs;
    uint8_t paging; /* enum guest_paging */
    uint8_t levels; /* levels read from memory */
    uint8_t linear_bits;
    uint8_t wp, smep, smap, ac, nxe, pke, pks, pge, pse, page_1g;
    uint8_t user;       /* CPL = 3 */
    uint8_t hlat;       /* "enable HLAT", in 4- and 5-level paging */
    uint8_t fetch_flag; /* error codes tell fetches: SMEP, or PAE with NXE */
} guest_mode;

/* A walk under way. `user`, `writable` and `executable` are the AND over the entries used. */
typedef struct {
    uint64_t gva;
    uint64_t entry_gpa; /* where the next entry is */
    uint64_t gpa;       /* when done: the translation */
    uint64_t leaf;      /* the entry that maps the page */
    uint8_t level;      /* of the entry at entry_gpa */
    uint8_t shift;      /* when done: log2 of the page size */
    uint8_t user, writable, executable;
    uint8_t global, key;
} guest_walk;

enum guest_step { GUEST_DESCEND, GUEST_DONE, GUEST_NOT_PRESENT, GUEST_RESERVED };

void guest_mode_set(guest_mode *mode, const vtx_context *context, const vtx_shape *shape);

/* Bytes of an entry in this mode. */
static inline unsigned guest_entry_size(const guest_mode *mode) {
    return mode->paging == PAGING_32BIT ? 4 : 8;
}

/* log2 of the region that one entry of `level` maps. */
static inline unsigned guest_shift(const guest_mode *mode, unsigned level) {
    return mode->paging == PAGING_32BIT ? 2 + 10 * level : 3 + 9 * level;
}

static inline int guest_is_canonical(const guest_mode *mode, uint64_t gva) {
    if (mode->linear_bits == 32)
        return 1; /* the address was truncated to 32 bits */
    int64_t top = (int64_t)gva >> (mode->linear_bits - 1);
    return top == 0 || top == -1;
}

/* Start a walk. GUEST_DONE without paging, GUEST_NOT_PRESENT for a PDPTE register without P. */
enum guest_step guest_begin(const guest_mode *mode, guest_walk *walk, uint64_t gva);
/* Is this address translated by HLAT paging first? */
static inline int guest_uses_hlat(const guest_mode *mode, uint64_t gva) {
    return mode->hlat && (gva & mode->hlat_prefix) == mode->hlat_prefix;
}
/* Resume a walk at a table found in a paging-structure cache: rights and level are filled in. */
void guest_resume(const guest_mode *mode, guest_walk *walk, uint64_t table_gpa);
/* Use the entry at walk->entry_gpa. */
enum guest_step guest_use(const guest_mode *mode, guest_walk *walk, uint64_t entry);

/* Does the paging mode allow `access` (enum vtx_access)? 0, or the error code of the page fault. */
uint32_t guest_permission(const guest_mode *mode, const guest_walk *walk, uint32_t access);
/* Error code of a fault on an entry that is not present (0) or has a reserved bit set (1). */
uint32_t guest_entry_fault(const guest_mode *mode, uint32_t access, int reserved);
/* Protection keys alone, for cached translations: 0 allowed, else the PK bit. */
uint32_t guest_key_fault(const guest_mode *mode, unsigned key, int user_page, uint32_t access);

static inline int access_is_write(uint32_t access) {
    return (access & 2) != 0;
}
static inline int access_is_fetch(uint32_t access) {
    return (access & 3) == VTX_FETCH;
}
/* User-mode access: CPL 3, unless the processor accesses a system structure by itself. */
static inline int access_is_user(const guest_mode *mode, uint32_t access) {
    return mode->user && !(access & VTX_IMPLICIT_SUPERVISOR);
}

#endif

/* The walk where every entry is as it mostly is: present, well-formed, with the rights that the
 * access needs and its flags set, so that nothing is to be decided or written. What one comparison
 * an entry cannot pass is left to walk.c, which starts again from the top: a fast walk has no
 * effect. */
#ifndef VTX_WALK_FAST_H
#define VTX_WALK_FAST_H

#include "ept.h"
#include "guest.h"
#include "mem.h"

#include <string.h>

/* (entry & mask) == want */
typedef struct {
    uint64_t mask, want;
} entry_test;

/* For one use of EPT, or for one kind of access by guest paging. Leaves by level. */
typedef struct {
    entry_test table;
    entry_test leaf[4];
} dimension_tests;

typedef struct {
    uint64_t guest_root, ept_root;
    uint64_t frame; /* the address bits of an entry that can lie within memory */
    uint8_t on[8];  /* by access: 4-level paging over no EPT or 4-level EPT, without oddities */
    uint8_t ept;
    uint8_t deny_user[8];        /* a user-mode page faults: SMAP, SMEP */
    dimension_tests guest[8];    /* by access */
    dimension_tests ept_read;    /* EPT on behalf of guest entries */
    dimension_tests ept_last[8]; /* EPT on behalf of the access */
} walk_tests;

/* What a fast walk found. */
typedef struct {
    uint64_t gpa, hpa;
    uint64_t guest_leaf, ept_leaf;
    uint64_t guest_and, guest_or; /* of the entries */
    uint64_t ept_and;             /* of the entries of the last EPT walk */
    uint8_t guest_shift, ept_shift;
    uint8_t ept_level; /* of the last EPT entry read; 0: the nested TLB knew */
    uint8_t ended[4]; /* EPT walks that ended above level 1, by level */
} fast_result;

void walk_tests_set(walk_tests *tests, const guest_mode *guest, const ept_mode *ept,
                    const vtx_memory *memory, uint32_t controls);

static inline int entry_passes(uint64_t entry, const entry_test *test) {
    return (entry & test->mask) == test->want;
}

/* The offset is added to the base first: it is known before the table is. */
static inline uint64_t fast_load(const uint8_t *base, uint64_t table, uint64_t offset) {
    const uint8_t *row = base + offset;
#if defined(__GNUC__)
    __asm__("" : "+r"(row));
#endif
    return __atomic_load_n((const uint64_t *)(const void *)(row + table), __ATOMIC_RELAXED);
}

/* Offset in its table of the entry of `level` for an address. */
#define ENTRY_OFFSET(address, level) ((address) >> (9 * (level)) & 0xFF8)

/* Does memory hold the whole of a large page? */
static inline int fast_holds(const walk_tests *tests, uint64_t frame, uint64_t offset) {
    return !(((frame & 0x000FFFFFFFFFF000ull) | offset) & ~(tests->frame | 0xFFF));
}

/* An EPT entry that references no table: a large page, or something for walk.c. */
static inline int fast_ept_large(const walk_tests *tests, const dimension_tests *use, uint64_t gpa,
                                 uint64_t entry, unsigned level, fast_result *r) {
    const unsigned shift = 3 + 9 * level;
    const uint64_t offset = (1ull << shift) - 1;
    if (!entry_passes(entry, &use->leaf[level]) || ept_type_malformed(entry) ||
        !fast_holds(tests, entry, offset))
        return 0;
    r->hpa = (entry & tests->frame) | (gpa & offset);
    r->ept_leaf = entry;
    r->ept_shift = (uint8_t)shift;
    r->ept_and &= entry;
    r->ended[level]++;
    return 1;
}

/* `last`: of the access itself, where rights count. Each entry is looked at as its difference from
 * what is wanted: it has the same frame. */
static inline int fast_ept(const walk_tests *tests, const uint8_t *memory,
                           const dimension_tests *use, uint64_t gpa, int last, fast_result *r) {
    const uint64_t mask = use->table.mask, want = use->table.want, frame = tests->frame;
    const uint64_t e4 = fast_load(memory, tests->ept_root, ENTRY_OFFSET(gpa, 4)) ^ want;
    if (e4 & mask)
        return 0;
    const uint64_t e3 = fast_load(memory, e4 & frame, ENTRY_OFFSET(gpa, 3)) ^ want;
    if (last)
        r->ept_and = e4 ^ want;
    if (e3 & mask)
        return fast_ept_large(tests, use, gpa, e3 ^ want, 3, r);
    const uint64_t e2 = fast_load(memory, e3 & frame, ENTRY_OFFSET(gpa, 2)) ^ want;
    if (last)
        r->ept_and &= e3 ^ want;
    if (e2 & mask)
        return fast_ept_large(tests, use, gpa, e2 ^ want, 2, r);
    const uint64_t e1 = fast_load(memory, e2 & frame, ENTRY_OFFSET(gpa, 1));
    if (!entry_passes(e1, &use->leaf[1]) || (last && ept_type_malformed(e1)))
        return 0;
    r->hpa = (e1 & frame) | (gpa & 0xFFF);
    if (!last)
        return 1;
    r->ept_and &= (e2 ^ want) & e1;
    r->ept_leaf = e1;
    r->ept_shift = 12;
    return 1;
}

/* Read the guest entry at `gpa`. */
static inline int fast_guest_entry(const walk_tests *tests, const uint8_t *memory, int ept,
                                   uint64_t gpa, uint64_t *entry, fast_result *r) {
    if (!ept) {
        *entry = fast_load(memory, gpa, 0);
        return 1;
    }
    if (!fast_ept(tests, memory, &tests->ept_read, gpa, 0, r))
        return 0;
    *entry = fast_load(memory, r->hpa, 0);
    return 1;
}

/* Guest addresses may be as wide as `frame` without EPT; with EPT their own tests bound them. */
#define GUEST_FRAME 0x0000FFFFFFFFF000ull

static inline int fast_walk_in(const walk_tests *tests, const uint8_t *memory, int ept,
                               uint64_t gva, uint32_t access, fast_result *r) {
    const dimension_tests *use = &tests->guest[access];
    uint64_t table = tests->guest_root;
    uint64_t entry = 0;
    uint64_t all = ~0ull, any = 0;
    unsigned level = 4;
    memset(r->ended, 0, sizeof r->ended);
    r->ept_and = 0;
#pragma GCC unroll 4
    for (; level >= 1; level--) {
        if (!fast_guest_entry(tests, memory, ept, table | ENTRY_OFFSET(gva, level), &entry, r))
            return 0;
        all &= entry;
        any |= entry;
        if (level == 1 || (entry & use->table.mask) != use->table.want)
            break;
        table = entry & GUEST_FRAME;
    }
    if (level > 3 || !entry_passes(entry, &use->leaf[level]) ||
        (tests->deny_user[access] && (all & PTE_U)))
        return 0;
    const unsigned shift = 3 + 9 * level;
    const uint64_t offset = (1ull << shift) - 1;
    r->guest_leaf = entry;
    r->guest_and = all;
    r->guest_or = any;
    r->guest_shift = (uint8_t)shift;
    r->gpa = (entry & GUEST_FRAME & ~offset) | (gva & offset);
    if (ept)
        return fast_ept(tests, memory, &tests->ept_last[access], r->gpa, 1, r);
    if (!fast_holds(tests, r->gpa, offset))
        return 0;
    r->hpa = r->gpa;
    r->ept_leaf = 0;
    r->ept_and = EPT_R | EPT_W | EPT_X | EPT_XU;
    r->ept_shift = 0;
    return 1;
}

/* Walk for an access (3 bits). 0: walk.c has to. */
static inline int fast_walk(const walk_tests *tests, const vtx_memory *memory, uint64_t gva,
                            uint32_t access, fast_result *r) {
    const int64_t top = (int64_t)gva >> 47;
    if (!tests->on[access] || (top != 0 && top != -1))
        return 0;
    return tests->ept ? fast_walk_in(tests, memory->base, 1, gva, access, r)
                      : fast_walk_in(tests, memory->base, 0, gva, access, r);
}

/* log2 of the effective page size. */
static inline unsigned fast_shift(const fast_result *r) {
    return r->ept_shift && r->ept_shift < r->guest_shift ? r->ept_shift : r->guest_shift;
}

/* The row of a walk that succeeded. */
static inline vtx_translation fast_row(uint64_t hpa, uint64_t gpa, unsigned shift) {
    return (vtx_translation){.hpa = hpa,
                             .gpa = gpa,
                             .page_shift = (uint8_t)shift,
                             .source = VTX_FROM_WALK,
                             .gpa_valid = 1,
                             .translated = 1};
}

/* Walks of one kind of access, at most FAST_LANES of them, side by side: while one waits for
 * memory the others go on. Only for pages of 4 KBytes under EPT; returns the lanes (1 << i) that
 * are left to fast_walk. */
enum { FAST_LANES = 16 };
unsigned fast_walk_lanes(const walk_tests *tests, const vtx_memory *memory, uint32_t access,
                         const uint64_t *gvas, unsigned count, vtx_translation *out);

#endif

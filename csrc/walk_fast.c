/* The comparisons of the fast walk, and walks side by side. See walk_fast.h. */
#include "walk_fast.h"

#include <string.h>

static uint64_t bit_range(unsigned high, unsigned low) {
    return (~0ull >> (63 - high)) & (~0ull << low);
}

/* A test that no entry passes. */
static const entry_test never = {0, 1};

/* Address bits at or above the largest power of two within memory: entries with one of them are
 * walk.c's. */
static uint64_t beyond_memory(const vtx_memory *memory) {
    unsigned top = 12;
    while (top < 51 && memory->size >> (top + 1))
        top++;
    return bit_range(51, top);
}

static void set_ept(dimension_tests *tests, const ept_mode *mode, uint32_t rights, int write,
                    uint64_t beyond) {
    const uint64_t table = rights | EPT_R | (mode->flags ? EPT_A : 0u);
    const uint64_t leaf = table | (mode->flags && write ? EPT_D : 0u);
    tests->table = (entry_test){table | mode->reserved[0][1] | EPT_PS | beyond, table};
    tests->leaf[1] = (entry_test){leaf | mode->reserved[1][1] | beyond, leaf};
    for (unsigned level = 2; level <= 3; level++)
        tests->leaf[level] =
            mode->leaf_mask[level] == EPT_PS
                ? (entry_test){leaf | mode->reserved[1][level] | EPT_PS | beyond, leaf | EPT_PS}
                : never;
}

static void set_guest(dimension_tests *tests, const guest_mode *mode, uint32_t access,
                      uint64_t beyond) {
    const int user = access_is_user(mode, access);
    uint64_t set = PTE_P | PTE_A;
    uint64_t clear = beyond;
    if (user)
        set |= PTE_U;
    if (access_is_write(access) && (user || mode->wp))
        set |= PTE_W;
    if (access_is_fetch(access) && mode->nxe)
        clear |= PTE_XD;
    const uint64_t dirty = access_is_write(access) ? PTE_D : 0;
    /* PDPTEs and PDEs that reference tables reserve less than PML4Es: PS is tested apart. */
    tests->table = (entry_test){set | clear | mode->reserved[1] | PTE_PS, set};
    tests->leaf[1] = (entry_test){set | dirty | clear | mode->reserved[1], set | dirty};
    for (unsigned level = 2; level <= 3; level++) {
        const uint64_t reserved =
            (mode->reserved[level] | mode->reserved_leaf[level]) & ~(uint64_t)PTE_PS;
        tests->leaf[level] =
            level == 2 || mode->page_1g
                ? (entry_test){set | dirty | clear | reserved | PTE_PS, set | dirty | PTE_PS}
                : never;
    }
}

static uint32_t last_rights(uint32_t access) {
    if (access_is_fetch(access))
        return EPT_X;
    return access_is_write(access) ? EPT_W : EPT_R;
}

void walk_tests_set(walk_tests *tests, const guest_mode *guest, const ept_mode *ept,
                    const vtx_memory *memory, uint32_t controls) {
    memset(tests, 0, sizeof *tests);
    const uint64_t beyond = beyond_memory(memory);
    tests->frame = GUEST_FRAME & ~beyond;
    tests->ept = ept->levels != 0;
    tests->guest_root = guest->root;
    tests->ept_root = ept->root;
    if (controls || guest->paging != PAGING_4LEVEL || (ept->levels && ept->levels != 4))
        return;
    if (tests->ept ? (ept->root & beyond) || guest->root >> 48 : (guest->root & beyond) != 0)
        return;
    set_ept(&tests->ept_read, ept, EPT_R | (ept->flags ? EPT_W : 0u), ept->flags, beyond);
    /* Guest tables are in write-back memory, or walk.c looks at their memory type. */
    tests->ept_read.leaf[1].mask |= 7u << EPT_TYPE_SHIFT;
    tests->ept_read.leaf[1].want |= 6u << EPT_TYPE_SHIFT;
    for (uint32_t access = 0; access < 8; access++) {
        const int fetch = access_is_fetch(access);
        set_guest(&tests->guest[access], guest, access, tests->ept ? bit_range(51, 48) : beyond);
        set_ept(&tests->ept_last[access], ept, last_rights(access), access_is_write(access),
                beyond);
        const int explicit_ac = guest->ac && !(access & VTX_IMPLICIT_SUPERVISOR);
        tests->deny_user[access] = !access_is_user(guest, access) &&
                                   (fetch ? guest->smep : guest->smap && !explicit_ac);
        /* What depends on more than one entry at a time is walk.c's. */
        tests->on[access] = fetch ? !ept->mode_based : !guest->pke && !guest->pks;
    }
}

/* ---- Side by side --------------------------------------------------------------------------- */

typedef struct {
    uint64_t at;  /* physical address of the next entry */
    uint64_t gpa; /* what EPT translates */
    uint64_t bad; /* not 0: a test has failed; addresses stay within memory whatever was wrong */
} lane;

static inline void ask_for(const uint8_t *memory, uint64_t address) {
#if defined(__GNUC__)
    __builtin_prefetch(memory + address);
#else
    (void)memory;
    (void)address;
#endif
}

/* The upper levels of an EPT walk, which are mostly near, down to asking for its PTE. */
static inline void lane_to_pte(const walk_tests *tests, const uint8_t *memory,
                               const entry_test *table, lane *l) {
    const uint64_t frame = tests->frame, want = table->want, gpa = l->gpa;
    const uint64_t e4 = fast_load(memory, tests->ept_root, ENTRY_OFFSET(gpa, 4)) ^ want;
    const uint64_t e3 = fast_load(memory, e4 & frame, ENTRY_OFFSET(gpa, 3)) ^ want;
    const uint64_t e2 = fast_load(memory, e3 & frame, ENTRY_OFFSET(gpa, 2)) ^ want;
    l->bad |= (e4 | e3 | e2) & table->mask;
    l->at = (e2 & frame) | ENTRY_OFFSET(gpa, 1);
    ask_for(memory, l->at);
}

/* Its PTE, and what that leads to. */
static inline void lane_pte(const walk_tests *tests, const uint8_t *memory,
                            const entry_test *leaf, int last, lane *l) {
    const uint64_t e1 = fast_load(memory, l->at, 0);
    l->bad |= ((e1 & leaf->mask) ^ leaf->want) | (last ? (uint64_t)ept_type_malformed(e1) : 0);
    l->at = (e1 & tests->frame) | (l->gpa & 0xFFF);
}

unsigned fast_walk_lanes(const walk_tests *tests, const vtx_memory *memory, uint32_t access,
                         const uint64_t *gvas, unsigned count, vtx_translation *out) {
    const dimension_tests *guest = &tests->guest[access];
    const dimension_tests *last = &tests->ept_last[access];
    const uint8_t *base = memory->base;
    lane lanes[FAST_LANES];
    if (!tests->ept || !tests->on[access] || tests->deny_user[access])
        return (1u << count) - 1;
    for (unsigned i = 0; i < count; i++) {
        const int64_t top = (int64_t)gvas[i] >> 47;
        lanes[i].bad = top != 0 && top != -1;
        lanes[i].gpa = tests->guest_root | ENTRY_OFFSET(gvas[i], 4);
        lane_to_pte(tests, base, &tests->ept_read.table, &lanes[i]);
    }
#pragma GCC unroll 4
    for (unsigned level = 4; level >= 1; level--) {
        const entry_test test = level > 1 ? guest->table : guest->leaf[1];
        const entry_test *table = level > 1 ? &tests->ept_read.table : &last->table;
        for (unsigned i = 0; i < count; i++) {
            lane_pte(tests, base, &tests->ept_read.leaf[1], 0, &lanes[i]);
            ask_for(base, lanes[i].at);
        }
        for (unsigned i = 0; i < count; i++) {
            const uint64_t entry = fast_load(base, lanes[i].at, 0);
            lanes[i].bad |= (entry & test.mask) ^ test.want;
            lanes[i].gpa = (entry & GUEST_FRAME) |
                           (level > 1 ? ENTRY_OFFSET(gvas[i], level - 1) : gvas[i] & 0xFFF);
            lane_to_pte(tests, base, table, &lanes[i]);
        }
    }
    unsigned left = 0;
    for (unsigned i = 0; i < count; i++) {
        lane_pte(tests, base, &last->leaf[1], 1, &lanes[i]);
        out[i] = fast_row(lanes[i].at, lanes[i].gpa, 12);
        left |= (unsigned)(lanes[i].bad != 0) << i;
    }
    return left;
}

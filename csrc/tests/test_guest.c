/* Guest paging step by step, without memory: modes, formats, reserved bits, rights. */
#include "check.h"
#include "guest.h"

static const vtx_shape shape = {.maxphyaddr = 40, .linear_bits = 57, .page_1g = 1};
static const vtx_context long_mode = {
    .cr0 = 0x80010001, .cr4 = CR4_PAE, .efer = EFER_LMA | EFER_NXE, .cr3 = 0x7FFFFF1018};

static guest_mode mode_of(vtx_context context) {
    guest_mode mode;
    guest_mode_set(&mode, &context, &shape);
    return mode;
}

static void modes(void) {
    vtx_context context = long_mode;
    CHECK(mode_of(context).paging == PAGING_4LEVEL && mode_of(context).levels == 4);
    CHECK(mode_of(context).root == 0x7FFFFF1000);
    context.cr4 |= CR4_LA57;
    CHECK(mode_of(context).paging == PAGING_5LEVEL && mode_of(context).linear_bits == 57);
    context.efer = 0;
    CHECK(mode_of(context).paging == PAGING_PAE && mode_of(context).linear_bits == 32);
    context.cr4 = 0;
    CHECK(mode_of(context).paging == PAGING_32BIT &&
          mode_of(context).root == 0xFFFFF1000 % (1ull << 32));
    context.cr0 = 1;
    CHECK(mode_of(context).paging == PAGING_NONE);
}

static void canonical(void) {
    const guest_mode four = mode_of(long_mode);
    CHECK(guest_is_canonical(&four, 0x00007FFFFFFFFFFF));
    CHECK(!guest_is_canonical(&four, 0x0000800000000000));
    CHECK(guest_is_canonical(&four, 0xFFFF800000000000));
    CHECK(!guest_is_canonical(&four, 0xFFFF7FFFFFFFFFFF));
}

/* PSE-36: a 4-MByte page takes address bits 39:32 from bits 20:13, and bit 21 is reserved. */
static void pse36(void) {
    vtx_context context = {.cr0 = 0x80000001, .cr4 = CR4_PSE, .cr3 = 0x5000};
    guest_mode mode = mode_of(context);
    guest_walk walk;
    CHECK(guest_begin(&mode, &walk, 0xFFFFFFFF12345678ull) == GUEST_DESCEND);
    CHECK(walk.entry_gpa == (0x5000 | (0x12345678u >> 22) * 4));
    CHECK(guest_use(&mode, &walk, 0x0C000000 | 0xABu << 13 | PTE_PS | PTE_P) == GUEST_DONE);
    CHECK(walk.gpa == (0xABull << 32 | 0x0C000000 | (0x12345678 & 0x3FFFFF)) && walk.shift == 22);
    guest_begin(&mode, &walk, 0);
    CHECK(guest_use(&mode, &walk, 1u << 21 | PTE_PS | PTE_P) == GUEST_RESERVED);
    context.cr4 = 0; /* without PSE the bit is ignored */
    mode = mode_of(context);
    guest_begin(&mode, &walk, 0);
    CHECK(guest_use(&mode, &walk, 1u << 21 | PTE_PS | PTE_P) == GUEST_DESCEND);
    CHECK(walk.entry_gpa == 1u << 21);
}

static void pae(void) {
    const vtx_context context = {.cr0 = 0x80000001, .cr4 = CR4_PAE, .pdptes = {0, 0x9001, 0, 0}};
    const guest_mode mode = mode_of(context);
    guest_walk walk;
    CHECK(guest_begin(&mode, &walk, 0) == GUEST_NOT_PRESENT);
    CHECK(guest_begin(&mode, &walk, 0x40200000) == GUEST_DESCEND);
    CHECK(walk.entry_gpa == 0x9008 && walk.level == 2);
    CHECK(guest_use(&mode, &walk, 1ull << 52 | PTE_P) == GUEST_RESERVED); /* 62:MAXPHYADDR */
    CHECK(guest_use(&mode, &walk, 0x3000000 | PTE_PS | PTE_P) == GUEST_DONE && walk.shift == 21);
}

/* Reserved bits of 4-level paging: which single bits fault at which level, in a leaf and in a
 * table. */
static void reserved_bits(void) {
    const guest_mode mode = mode_of(long_mode);
    for (unsigned level = 1; level <= 4; level++) {
        for (unsigned bit = 1; bit < 64; bit++) {
            for (unsigned large = 0; large < 2; large++) {
                if ((large && (level == 1 || level == 4)) || (bit == 7 && level > 1 && !large))
                    continue;
                guest_walk walk = {.level = (uint8_t)level};
                const uint64_t entry = PTE_P | 1ull << bit | (large ? PTE_PS : 0);
                const unsigned page = 3 + 9 * level;
                const int expect = (bit >= 40 && bit <= 51) || (large && bit >= 13 && bit < page);
                CHECK((guest_use(&mode, &walk, entry) == GUEST_RESERVED) == expect);
            }
        }
    }
    guest_walk walk = {.level = 4};
    CHECK(guest_use(&mode, &walk, PTE_P | PTE_PS) == GUEST_RESERVED);
    CHECK(guest_use(&mode, &walk, PTE_XD | PTE_PS) == GUEST_NOT_PRESENT); /* P comes first */
    vtx_context context = long_mode;
    context.efer = EFER_LMA;
    const guest_mode no_nx = mode_of(context);
    CHECK(guest_use(&no_nx, &walk, PTE_P | PTE_XD) == GUEST_RESERVED);
}

/* Every combination of page rights, processor state and access against the rule in one
 * expression. */
static void rights(void) {
    for (unsigned i = 0; i < 1u << 11; i++) {
        vtx_context context = long_mode;
        const int w = i & 1, u = i >> 1 & 1, x = i >> 2 & 1;
        const int wp = i >> 3 & 1, smep = i >> 4 & 1, smap = i >> 5 & 1, ac = i >> 6 & 1;
        const int implicit = i >> 8 & 1, user = (i >> 7 & 1) && !implicit;
        const uint32_t access = i >> 9 | (implicit ? VTX_IMPLICIT_SUPERVISOR : 0u);
        context.cr0 = 0x80000001 | (wp ? CR0_WP : 0u);
        context.cr4 |= (smep ? CR4_SMEP : 0u) | (smap ? CR4_SMAP : 0u);
        context.rflags = ac ? RFLAGS_AC : 0;
        context.cpl = i >> 7 & 1 ? 3 : 0;
        const guest_mode mode = mode_of(context);
        const guest_walk walk = {
            .user = (uint8_t)u, .writable = (uint8_t)w, .executable = (uint8_t)x};
        const int fetch = (access & 3) == VTX_FETCH, write = (access & 2) != 0;
        const int may = user    ? u && (fetch ? x : w || !write)
                        : fetch ? x && !(u && smep)
                                : !(u && smap && (implicit || !ac)) && (w || !write || !wp);
        const uint32_t code =
            1u | (uint32_t)write << 1 | (uint32_t)user << 2 | (uint32_t)fetch << 4;
        CHECK(guest_permission(&mode, &walk, access) == (may ? 0 : code));
    }
}

int main(void) {
    modes();
    canonical();
    pse36();
    pae();
    reserved_bits();
    rights();
    return outcome();
}

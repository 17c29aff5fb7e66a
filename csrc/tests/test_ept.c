/* EPT step by step, without memory: presence, misconfiguration, sizes, rights. */
#include "check.h"
#include "ept.h"

#define CAP_ALL (1ull | 1ull << EPT_CAP_2M | 1ull << EPT_CAP_1G | 1ull << EPT_CAP_ADVANCED)

static ept_mode mode_of(uint64_t capabilities, uint64_t eptp, uint32_t controls) {
    const vtx_shape shape = {.ept_vpid_cap = capabilities, .maxphyaddr = 40};
    const vtx_context context = {.eptp = eptp, .controls = VTX_ENABLE_EPT | controls};
    ept_mode mode;
    ept_mode_set(&mode, &context, &shape);
    return mode;
}

static enum ept_step use(const ept_mode *mode, unsigned level, uint64_t entry) {
    ept_walk walk = {.level = level, .rights = 0x407};
    return ept_use(mode, &walk, entry);
}

static void off(void) {
    const vtx_shape shape = {.maxphyaddr = 40};
    const vtx_context context = {.eptp = 0x101E};
    ept_mode mode;
    ept_mode_set(&mode, &context, &shape);
    CHECK(mode.levels == 0);
}

static void widths(void) {
    const ept_mode four = mode_of(CAP_ALL, 0x101E, 0);
    const ept_mode five = mode_of(CAP_ALL, 0x1026, 0);
    ept_walk walk;
    CHECK(four.levels == 4 && five.levels == 5 && four.root == 0x1000);
    CHECK(ept_begin(&four, &walk, (1ull << 48) - 1) == EPT_DESCEND);
    CHECK(ept_begin(&four, &walk, 1ull << 48) == EPT_NOT_PRESENT);
    CHECK(ept_begin(&five, &walk, 1ull << 48) == EPT_DESCEND);
    CHECK(walk.entry_hpa == 0x1000 + 8);
}

/* Bits 2:0 (and 10): which combinations are present, and which of those are misconfigured. */
static void presence(void) {
    for (unsigned only = 0; only < 2; only++) {
        for (unsigned mbe = 0; mbe < 2; mbe++) {
            const ept_mode mode =
                mode_of(CAP_ALL & ~(only ? 0ull : 1ull), 0x101E, mbe ? VTX_MODE_BASED_EXECUTE : 0);
            for (unsigned rwx = 0; rwx < 16; rwx++) {
                const uint64_t entry = (rwx & 7) | (rwx >> 3) << 10 | 6 << 3;
                const int r = rwx & 1, w = rwx >> 1 & 1, x = rwx >> 2 & 1;
                const int xu = mbe && rwx >> 3;
                enum ept_step expect = EPT_DONE;
                if (!r && !w && !x && !xu)
                    expect = EPT_NOT_PRESENT;
                else if (!r && (w || (!only && (x || xu))))
                    expect = EPT_MALFORMED;
                CHECK(use(&mode, 1, entry) == expect);
            }
        }
    }
}

/* One more bit in an entry that is well-formed without it. */
static void reserved_bits(void) {
    const ept_mode mode = mode_of(CAP_ALL, 0x101E, 0);
    for (unsigned level = 1; level <= 4; level++) {
        for (unsigned bit = 7; bit < 64; bit++) {
            const unsigned page = 3 + 9 * level;
            if (level > 1 && bit > 7) {
                const int expect = bit >= 40 && bit <= 51;
                CHECK((use(&mode, level, 7 | 1ull << bit) == EPT_MALFORMED) == expect);
            }
            if (level < 4) {
                const uint64_t leaf = 7 | 6 << 3 | (level > 1 ? EPT_PS : 0);
                const int expect = (bit >= 40 && bit <= 51) || (bit >= 12 && bit < page);
                CHECK((use(&mode, level, leaf | 1ull << bit) == EPT_MALFORMED) == expect);
            }
        }
    }
    for (unsigned bit = 3; bit < 7; bit++)
        CHECK(use(&mode, 3, 7 | 1u << bit) == EPT_MALFORMED);
    CHECK(use(&mode, 4, 7 | EPT_PS) == EPT_MALFORMED);
}

static void sizes_and_types(void) {
    const ept_mode none = mode_of(1, 0x101E, 0);
    const ept_mode all = mode_of(CAP_ALL, 0x101E, 0);
    CHECK(use(&none, 2, 7 | EPT_PS) == EPT_MALFORMED);
    CHECK(use(&none, 3, 7 | EPT_PS) == EPT_MALFORMED);
    CHECK(use(&all, 2, 7 | EPT_PS) == EPT_DONE);
    CHECK(use(&all, 3, 7 | EPT_PS) == EPT_DONE);
    for (uint64_t type = 0; type < 8; type++)
        CHECK((use(&all, 1, 7 | type << 3) == EPT_MALFORMED) ==
              (type == 2 || type == 3 || type == 7));
    ept_walk walk = {.gpa = 0x12345678, .level = 2, .rights = 0x407};
    CHECK(ept_use(&all, &walk, 0x40000000 | EPT_PS | 5) == EPT_DONE);
    CHECK(walk.hpa == (0x40000000 | (0x12345678 & 0x1FFFFF)) && walk.shift == 21 &&
          walk.rights == 5);
}

static void needs(void) {
    const ept_mode plain = mode_of(CAP_ALL, 0x101E, 0);
    const ept_mode mbe = mode_of(CAP_ALL, 0x101E, VTX_MODE_BASED_EXECUTE);
    CHECK(ept_needs(&plain, EPTQ_READ | EPTQ_WRITE, 0) == (EPT_R | EPT_W));
    CHECK(ept_needs(&plain, EPTQ_FETCH, 1) == EPT_X);
    CHECK(ept_needs(&mbe, EPTQ_FETCH, 1) == EPT_XU);
    CHECK(ept_needs(&mbe, EPTQ_FETCH, 0) == EPT_X);
}

int main(void) {
    off();
    widths();
    presence();
    reserved_bits();
    sizes_and_types();
    needs();
    return outcome();
}

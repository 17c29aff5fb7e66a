/* What the machine allows: the least work that could stand for a walk or for the run loop, in plain
 * C, for `vtx bench` to measure in the same run. Nothing here checks, counts or caches as the core
 * does. */
#include "mem.h"

#define FRAME          0x000FFFFFFFFFF000ull
#define OFFSET(at, by) ((at) >> (by) & 0xFF8)

static inline uint64_t load(const uint8_t *base, uint64_t address) {
    return __atomic_load_n((const uint64_t *)(const void *)(base + address), __ATOMIC_RELAXED);
}

/* Four dependent loads. */
static inline uint64_t descend(const uint8_t *base, uint64_t root, uint64_t gpa) {
    uint64_t entry = load(base, root | OFFSET(gpa, 36));
    entry = load(base, (entry & FRAME) | OFFSET(gpa, 27));
    entry = load(base, (entry & FRAME) | OFFSET(gpa, 18));
    entry = load(base, (entry & FRAME) | OFFSET(gpa, 9));
    return (entry & FRAME) | (gpa & 0xFFF);
}

uint64_t vtx_ceiling_walks(vtx_memory *memory, uint64_t cr3, uint64_t eptp, uint64_t count,
                           const uint64_t *gvas) {
    const uint8_t *base = memory->base;
    const uint64_t root = eptp & FRAME;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t table = cr3 & FRAME;
        for (unsigned shift = 36; shift >= 9; shift -= 9)
            table = load(base, descend(base, root, table | OFFSET(gvas[i], shift))) & FRAME;
        sum += descend(base, root, table | (gvas[i] & 0xFFF));
    }
    return sum;
}

enum { LANES = 16 };

uint64_t vtx_ceiling_walks_side_by_side(vtx_memory *memory, uint64_t cr3, uint64_t eptp,
                                        uint64_t count, const uint64_t *gvas) {
    const uint8_t *base = memory->base;
    const uint64_t root = eptp & FRAME;
    uint64_t sum = 0;
    for (uint64_t i = 0; i + LANES <= count; i += LANES) {
        uint64_t gpa[LANES], at[LANES];
        for (unsigned k = 0; k < LANES; k++)
            gpa[k] = (cr3 & FRAME) | OFFSET(gvas[i + k], 36);
        for (unsigned shift = 36;; shift -= 9) {
            for (unsigned k = 0; k < LANES; k++) {
                uint64_t entry = load(base, root | OFFSET(gpa[k], 36));
                entry = load(base, (entry & FRAME) | OFFSET(gpa[k], 27));
                entry = load(base, (entry & FRAME) | OFFSET(gpa[k], 18));
                at[k] = (entry & FRAME) | OFFSET(gpa[k], 9);
#if defined(__GNUC__)
                __builtin_prefetch(base + at[k]);
#endif
            }
            for (unsigned k = 0; k < LANES; k++) {
                at[k] = (load(base, at[k]) & FRAME) | (gpa[k] & 0xFFF);
#if defined(__GNUC__)
                __builtin_prefetch(base + at[k]);
#endif
            }
            if (shift == 0)
                break;
            for (unsigned k = 0; k < LANES; k++)
                gpa[k] = (load(base, at[k]) & FRAME) |
                         (shift > 9 ? OFFSET(gvas[i + k], shift - 9) : gvas[i + k] & 0xFFF);
        }
        for (unsigned k = 0; k < LANES; k++)
            sum += at[k];
    }
    return sum;
}

/* A last-page filter a side over direct-mapped tags: what counting hits costs at least. */
uint64_t vtx_ceiling_run(const uint64_t *records, uint64_t count) {
    uint64_t tags[2][64] = {{0}};
    uint64_t hits[4] = {0};
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t record = records[i];
        const uint64_t page = (record & 0x0000FFFFFFFFFFFFull) >> 12;
        uint64_t *tag = &tags[record >> 62 != 0][page & 63];
        hits[record >> 62] += *tag == page;
        *tag = page;
    }
    return hits[0] + hits[1] + hits[2] + hits[3];
}

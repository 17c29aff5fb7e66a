/* Random tables, random contexts, random operations: whatever is in memory, the core stays
 * within it, ends every walk, and with all caches finds what it finds without. Made for the
 * sanitizers. */
#include "check.h"
#include "core.h"

#include <string.h>

enum { MEMORY = 1 << 20, FRAMES = MEMORY >> 12, RECORDS = 256 };

static vtx_shape random_shape(void) {
    vtx_shape shape = {.ept_vpid_cap = random64() | (below(4) ? 3ull << 16 | 1 : 0),
                       .maxphyaddr = (uint32_t)(32 + below(21)),
                       .linear_bits = 57,
                       .page_1g = below(2) != 0,
                       .pml5 = (uint32_t)below(3),
                       .pml4 = (uint32_t)below(3),
                       .pdpt = (uint32_t)below(3),
                       .pd = (uint32_t)below(5),
                       .guest_physical = (uint32_t)below(5)};
    shape.array_count = (uint32_t)below(7);
    for (uint32_t i = 0; i < shape.array_count; i++) {
        const uint32_t replacement = (uint32_t)below(3);
        const uint32_t ways = replacement == VTX_TREE_PLRU ? 1u << below(4) : (uint32_t)(1 + below(20));
        shape.arrays[i] = (vtx_tlb_array){.level = (uint32_t)(1 + below(2)),
                                          .sides = (uint32_t)(1 + below(3)),
                                          .pages = (uint32_t)(1 + below(7)),
                                          .entries = ways << below(4),
                                          .ways = ways,
                                          .replacement = replacement,
                                          .seed = (uint32_t)random64()};
    }
    return shape;
}

/* An entry that is likely to lead on: a frame of memory, common rights, now and then anything. */
static uint64_t random_entry(void) {
    if (below(32) == 0)
        return random64();
    uint64_t entry = below(FRAMES + 1) << 12 | 7 | (below(4) ? 0 : below(1 << 12));
    if (below(3) == 0)
        entry |= 6 << 3; /* a memory type, for EPT leaves */
    if (below(24) == 0)
        entry |= 0x80;
    return below(16) ? entry : entry & ~(1ull << below(3));
}

static void fill(vtx_memory *memory) {
    uint64_t *words = vtx_memory_base(memory);
    for (unsigned i = 0; i < MEMORY / 8; i++)
        words[i] = random_entry();
}

static vtx_context random_context(void) {
    static const uint64_t efer[] = {0, 0x400, 0xC00, 0xC00, 0xC00};
    vtx_context context = {.cr0 = 1 | (below(8) ? 1ull << 31 : 0) | below(2) << 16,
                           .cr3 = below(FRAMES) << 12 | below(32),
                           .cr4 = (below(6) ? 1 << 5 : 0) | (random64() & 0x1731090),
                           .efer = efer[below(5)],
                           .rflags = below(2) << 18,
                           .eptp =
                               below(FRAMES) << 12 | (below(5) ? 3 : 4) << 3 | below(2) << 6 | 6,
                           .pml_address = below(FRAMES + 2) << 12,
                           .pkru = (uint32_t)random64(),
                           .pkrs = (uint32_t)random64(),
                           .controls = (uint32_t)below(8),
                           .vpid = (uint16_t)below(3),
                           .cpl = below(2) ? 3 : 0,
                           .pml_index = (uint16_t)(below(4) ? 511 : below(1 << 16))};
    for (unsigned i = 0; i < 4; i++)
        context.pdptes[i] = below(FRAMES) << 12 | 1;
    return context;
}

static uint64_t random_address(void) {
    uint64_t address = random64() >> (below(2) ? 16 : 32);
    if (below(3) == 0)
        address &= 0xFFFFF;
    if (below(64) == 0)
        address = random64();
    return (uint64_t)((int64_t)(address << 16) >> 16);
}

static void invalidate(vtx_mmu *mmu, const vtx_context *context) {
    switch (below(9)) {
    case 0:
        vtx_invlpg(mmu, context, random_address());
        break;
    case 1:
        vtx_invpcid(mmu, context, (uint32_t)below(5), (uint16_t)below(32), random_address());
        break;
    case 2:
        vtx_flush_pcid(mmu, context, (uint16_t)below(32));
        break;
    case 3:
        vtx_flush_vpid(mmu, (uint16_t)below(3));
        break;
    case 4:
        vtx_invept(mmu, (uint32_t)below(4), context->eptp);
        break;
    case 5:
        vtx_invvpid(mmu, (uint32_t)below(5), (uint16_t)below(3), random_address());
        break;
    case 6:
        vtx_flush_all(mmu);
        break;
    default:
        break;
    }
}

static int well_formed(const vtx_walk *walk) {
    if (walk->status > VTX_BAD_RECORD || walk->step_count > VTX_MAX_STEPS)
        return 0;
    return walk->status != VTX_OK || walk->hpa < MEMORY;
}

static void operate(vtx_mmu *mmu, vtx_context *context, uint64_t *records) {
    static const uint8_t dispositions[4] = {1, 0, 1, 1};
    vtx_walk walk;
    vtx_step steps[VTX_MAX_STEPS];
    for (unsigned i = 0; i < RECORDS; i++)
        records[i] = below(16) ? (random_address() & 0xFFFFFFFFFFFF) | random64() >> 60 << 48 |
                                     below(4) << 62
                               : below(6);
    for (uint64_t i = 0; i < RECORDS; i++) {
        const uint32_t status =
            vtx_run(mmu, context, records, &i, RECORDS, dispositions, 4, (uint32_t)below(2), &walk);
        CHECK(i <= RECORDS && status == walk.status && well_formed(&walk));
    }
    for (unsigned i = 0; i < 32; i++) {
        const uint64_t gva = random_address();
        const uint32_t access = (uint32_t)below(8);
        vtx_translate(mmu, context, gva, access, &walk, steps, (uint32_t)below(VTX_MAX_STEPS + 1));
        CHECK(well_formed(&walk));
        vtx_walk_tables(mmu, context, gva, access, &walk, steps, VTX_MAX_STEPS);
        CHECK(well_formed(&walk) && walk.step_count < VTX_MAX_STEPS);
        vtx_translate_guest_physical(mmu, context, gva, access, &walk, NULL, 0);
        CHECK(walk.status <= VTX_BAD_RECORD);
    }
}

/* Without a change of tables, a cached translation is the walk's. */
static void agree(vtx_mmu *mmu, vtx_context *context) {
    context->controls &= ~(uint32_t)VTX_ENABLE_PML; /* the log would write over tables */
    vtx_flush_all(mmu);
    for (unsigned i = 0; i < 64; i++) {
        const uint64_t gva = random_address();
        const uint32_t access = (uint32_t)below(8);
        vtx_walk cached, plain;
        vtx_walk_tables(mmu, context, gva, access, &plain, NULL, 0);
        vtx_walk_tables(mmu, context, gva, access, &plain, NULL, 0); /* flags are set by now */
        vtx_flush_all(mmu); /* they may have been set in a table that is cached */
        for (int k = 0; k < 2; k++) {
            vtx_translate(mmu, context, gva, access, &cached, NULL, 0);
            CHECK(cached.status == plain.status);
            CHECK(plain.status != VTX_OK || cached.hpa == plain.hpa);
        }
    }
}

int main(int argc, char **argv) {
    const unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 400;
    uint64_t records[RECORDS];
    vtx_memory *memory = vtx_memory_new(MEMORY, 0);
    REQUIRE(memory);
    uint64_t translated = 0;
    for (unsigned round = 0; round < rounds; round++) {
        vtx_shape shape = random_shape();
        if (vtx_shape_error(&shape))
            continue;
        fill(memory);
        vtx_mmu *mmu = vtx_mmu_new(memory, &shape);
        REQUIRE(mmu);
        for (unsigned i = 0; i < 12; i++) {
            vtx_context context = random_context();
            operate(mmu, &context, records);
            invalidate(mmu, &context);
        }
        vtx_context context = random_context();
        agree(mmu, &context);
        translated += vtx_mmu_counters(mmu)->walks;
        vtx_mmu_free(mmu);
    }
    CHECK(translated > rounds * 20); /* the tables are not all dead ends */
    vtx_memory_free(memory);
    return outcome();
}

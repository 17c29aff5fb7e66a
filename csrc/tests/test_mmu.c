/* The translation unit: shapes that are refused, and more spaces than there are numbers for. */
#include "check.h"
#include "mmu.h"

static const vtx_shape small = {
    .maxphyaddr = 40,
    .linear_bits = 48,
    .pd = 2,
    .guest_physical = 2,
    .array_count = 2,
    .arrays = {{1, 3, VTX_PAGE_4K, 4, 2, VTX_LRU, 0},
               {2, 3, VTX_PAGE_4K | VTX_PAGE_2M, 8, 4, VTX_LRU, 0}},
};

static void shapes(void) {
    vtx_memory *memory = vtx_memory_new(1 << 20, 0);
    vtx_shape shape = small;
    CHECK(vtx_shape_error(&shape) == NULL);
    shape.maxphyaddr = 53;
    CHECK(vtx_shape_error(&shape) && vtx_mmu_new(memory, &shape) == NULL);
    shape = small;
    shape.arrays[0].ways = 0;
    CHECK(vtx_shape_error(&shape));
    shape.arrays[0].ways = 3;
    CHECK(vtx_shape_error(&shape));
    shape = small;
    shape.arrays[1].entries = 12; /* three sets */
    CHECK(vtx_shape_error(&shape));
    shape = small;
    shape.arrays[0].replacement = VTX_RANDOM + 1;
    CHECK(vtx_shape_error(&shape));
    shape.arrays[0] = (vtx_tlb_array){1, 3, VTX_PAGE_4K, 6, 3, VTX_TREE_PLRU, 0};
    CHECK(vtx_shape_error(&shape));
    shape = small;
    shape.array_count = 17;
    CHECK(vtx_shape_error(&shape));
    CHECK(vtx_mmu_new(NULL, &small) == NULL);
    vtx_mmu_free(NULL);
    vtx_memory_free(memory);
}

/* Linear tables: one page at each of 4 KBytes from 0x40000000 on. */
static void identity_tables(vtx_memory *memory) {
    mem_store64(memory, 0x1000, 0x2007);
    mem_store64(memory, 0x2000 + 8, 0x3007);
    mem_store64(memory, 0x3000, 0x4007);
    for (uint64_t page = 0; page < 16; page++)
        mem_store64(memory, 0x4000 + 8 * page, (0x10000 + (page << 12)) | 7 | PTE_G * (page & 1));
}

static void spaces_run_out(void) {
    vtx_memory *memory = vtx_memory_new(1 << 20, 0);
    REQUIRE(memory);
    identity_tables(memory);
    vtx_mmu *mmu = vtx_mmu_new(memory, &small);
    REQUIRE(mmu);
    vtx_context context = {
        .cr0 = 0x80010001, .cr4 = CR4_PAE | CR4_PGE | CR4_PCIDE, .efer = EFER_LMA, .vpid = 1};
    vtx_walk walk;
    for (uint32_t i = 0; i < 3u << SPACE_BITS; i++) {
        context.vpid = (uint16_t)(1 + (i >> 12));
        context.cr3 = 0x1000 | (i & 0xFFF);
        const uint64_t page = i & 15;
        vtx_translate(mmu, &context, 0x40000000 + (page << 12), VTX_LOAD, &walk, NULL, 0);
        CHECK(walk.status == VTX_OK && walk.hpa == 0x10000 + (page << 12));
    }
    CHECK(mmu->tlb.space_limit <= SPACE_COUNT);
    /* The last page is still cached under the last space. */
    vtx_translate(mmu, &context, 0x4000F000, VTX_LOAD, &walk, NULL, 0);
    CHECK(walk.source == VTX_FROM_L1);
    vtx_mmu_free(mmu);
    vtx_memory_free(memory);
}

/* The front's keys are used up many times over; nothing old may show. */
static void front_keys_wrap(void) {
    vtx_memory *memory = vtx_memory_new(1 << 20, 0);
    REQUIRE(memory);
    identity_tables(memory);
    vtx_mmu *mmu = vtx_mmu_new(memory, &small);
    REQUIRE(mmu);
    vtx_context context = {.cr0 = 0x80010001, .cr3 = 0x1000, .cr4 = CR4_PAE, .efer = EFER_LMA};
    const uint64_t records[2] = {1ull << 62 | 8ull << 48 | 0x40000000,
                                 1ull << 62 | 8ull << 48 | 0x40002000};
    vtx_walk walk;
    for (uint64_t i = 0; i < 3 * FRONT_KEYS; i++) {
        uint64_t index = i & 1;
        CHECK(vtx_run(mmu, &context, records, &index, index + 1, NULL, 0, 0, &walk) == VTX_END);
        vtx_invlpg(mmu, &context, records[i & 1] & 0xFFFFFFFFFFFF);
    }
    const vtx_counters *counters = vtx_mmu_counters(mmu);
    CHECK(counters->l1d_hits == 0 && counters->walks == 3 * FRONT_KEYS);
    CHECK(vtx_mmu_generation(mmu) >= 3 * FRONT_KEYS);
    vtx_mmu_free(mmu);
    vtx_memory_free(memory);
}

int main(void) {
    shapes();
    spaces_run_out();
    front_keys_wrap();
    return outcome();
}

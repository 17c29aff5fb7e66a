/* Any input: a shape, paging structures, a context and operations; whatever it says, the core stays
 * within its memory, ends, and agrees with itself.
 *
 * For libFuzzer:
 *   clang -g -O1 -DFUZZER -fsanitize=fuzzer,address,undefined -Icsrc -o fuzz_core csrc/tests/fuzz_core.c CORE
 *   ./fuzz_core -runs=1000000
 * with CORE the core's C files. Without clang the CMake build makes fuzz_core with inputs from a
 * generator of its own: fuzz_core [INPUTS [SEED]]. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMORY = 1 << 18, FRAMES = MEMORY >> 12, MANY = 20 };

#define HOLDS(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

typedef struct {
    const uint8_t *at, *end;
} input;

/* The next `bytes` bytes (at most 8) as a number; 0 bits beyond the end. */
static uint64_t take(input *in, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && in->at < in->end; i++)
        value |= (uint64_t)*in->at++ << 8 * i;
    return value;
}

static vtx_shape take_shape(input *in) {
    vtx_shape shape = {.ept_vpid_cap = take(in, 3),
                       .maxphyaddr = 30 + (uint32_t)take(in, 1) % 26,
                       .linear_bits = take(in, 1) & 1 ? 57 : 48,
                       .page_1g = take(in, 1) & 1,
                       .pml5 = (uint32_t)take(in, 1) % 4,
                       .pml4 = (uint32_t)take(in, 1) % 4,
                       .pdpt = (uint32_t)take(in, 1) % 4,
                       .pd = (uint32_t)take(in, 1) % 8,
                       .guest_physical = (uint32_t)take(in, 1) % 8,
                       .array_count = (uint32_t)take(in, 1) % 8};
    for (uint32_t i = 0; i < shape.array_count; i++)
        shape.arrays[i] = (vtx_tlb_array){.level = (uint32_t)take(in, 1) % 4,
                                          .sides = (uint32_t)take(in, 1) % 5,
                                          .pages = (uint32_t)take(in, 1) % 9,
                                          .entries = (uint32_t)take(in, 1),
                                          .ways = (uint32_t)take(in, 1) % 33,
                                          .replacement = (uint32_t)take(in, 1) % 4,
                                          .seed = (uint32_t)take(in, 1)};
    for (unsigned i = (unsigned)take(in, 1) % 8; i < VTX_MAX_CACHES; i++)
        shape.caches[i] = (vtx_cache){.bytes = 64 * take(in, 1),
                                      .ways = (uint32_t)take(in, 1) % 17,
                                      .replacement = (uint32_t)take(in, 1) % 4,
                                      .seed = (uint32_t)take(in, 1)};
    return shape;
}

/* Frame, slot, low bits; now and then all the bits of an entry. */
static void take_entries(input *in, uint64_t *words) {
    for (unsigned count = (unsigned)take(in, 1); count; count--) {
        const uint64_t where = take(in, 2) % (MEMORY / 8);
        const uint64_t low = take(in, 2);
        const uint64_t entry = (take(in, 1) % (FRAMES + 1)) << 12 | (low & 0xFFF);
        words[where] = low >> 12 == 15 ? take(in, 8) : entry;
        if (low >> 12 < 4) /* a table that leads on everywhere */
            for (unsigned i = 0; i < 512; i++)
                words[(where & ~511ull) + i] = entry;
    }
}

/* All of memory as tables that mostly lead on, from one number. */
static void fill(uint64_t *words, uint64_t number) {
    for (unsigned i = 0; i < MEMORY / 8; i++) {
        number = number * 6364136223846793005ull + 1442695040888963407ull;
        const uint64_t draw = number >> 33;
        words[i] = draw % FRAMES << 12 | 7 | (draw >> 8 & 3 ? 0 : 0x30) | (draw >> 10 & 0x300) |
                   (draw >> 20 & 15 ? 0 : 1ull << (draw >> 24 & 63));
    }
}

static vtx_context take_context(input *in) {
    vtx_context context = {.cr0 = take(in, 1) << 16 | (take(in, 1) & 1) << 31,
                           .cr3 = take(in, 1) % FRAMES << 12 | take(in, 1),
                           .cr4 = take(in, 4),
                           .efer = take(in, 2),
                           .rflags = take(in, 3),
                           .eptp = take(in, 1) % FRAMES << 12 | take(in, 1),
                           .pml_address = take(in, 1) % (FRAMES + 1) << 12,
                           .spptp = take(in, 1) % FRAMES << 12,
                           .hlatp = take(in, 1) % FRAMES << 12,
                           .pkru = (uint32_t)take(in, 4),
                           .pkrs = (uint32_t)take(in, 4),
                           .controls = (uint32_t)take(in, 1),
                           .hlat_prefix_size = (uint32_t)take(in, 1) % 53,
                           .vpid = (uint16_t)(take(in, 1) % 3),
                           .cpl = take(in, 1) & 1 ? 3 : 0,
                           .pml_index = (uint16_t)take(in, 2)};
    for (unsigned i = 0; i < 4; i++)
        context.pdptes[i] = take(in, 1) % FRAMES << 12 | 1;
    return context;
}

static uint64_t take_address(input *in) {
    const uint64_t form = take(in, 1);
    return form < 128 ? take(in, 4) : form < 250 ? (uint64_t)((int64_t)(take(in, 6) << 16) >> 16)
                                                 : take(in, 8);
}

static unsigned long translated; /* so that a generator of dead ends shows */

static void sound(const vtx_walk *walk) {
    translated += walk->status == VTX_OK;
    HOLDS(walk->status <= VTX_BAD_RECORD && walk->step_count <= VTX_MAX_STEPS);
    HOLDS(walk->status != VTX_OK || walk->hpa < MEMORY);
}

static void look(vtx_mmu *mmu, vtx_context *context, input *in) {
    vtx_walk walk;
    vtx_step steps[VTX_MAX_STEPS];
    vtx_translation rows[MANY];
    uint64_t gvas[MANY];
    const uint8_t access = (uint8_t)(take(in, 1) & 7);
    for (unsigned i = 0; i < MANY; i++)
        gvas[i] = i % 4 ? gvas[i - 1] + (take(in, 1) << 9) : take_address(in);
    vtx_translate(mmu, context, gvas[0], access, &walk, steps, (uint32_t)take(in, 1) / 2);
    sound(&walk);
    vtx_translate_guest_physical(mmu, context, gvas[1], access, &walk, NULL, 0);
    sound(&walk);
    context->controls &= ~(uint32_t)VTX_ENABLE_PML; /* the log would write into the tables */
    for (unsigned i = 0; i < MANY; i++)             /* set all flags */
        vtx_walk_tables(mmu, context, gvas[i], access, &walk, steps, VTX_MAX_STEPS);
    vtx_walk_many(mmu, context, MANY, gvas, &access, 0, 1, rows);
    for (unsigned i = 0; i < MANY; i++) {
        vtx_walk_tables(mmu, context, gvas[i], access, &walk, steps, VTX_MAX_STEPS);
        sound(&walk);
        HOLDS(walk.status == rows[i].status);
        HOLDS(walk.status != VTX_OK || (walk.hpa == rows[i].hpa && walk.gpa == rows[i].gpa &&
                                        walk.page_shift == rows[i].page_shift));
    }
    vtx_translate_many(mmu, context, MANY, gvas, &access, 0, rows);
}

static void run(vtx_mmu *mmu, vtx_context *context, input *in) {
    static const uint8_t dispositions[4] = {1, 0, 1, 1};
    uint64_t records[32];
    vtx_walk walk;
    for (unsigned i = 0; i < 32; i++)
        records[i] = (take_address(in) & 0xFFFFFFFFFFFF) | take(in, 2) << 48;
    for (uint64_t i = 0; i < 32; i++) {
        vtx_run(mmu, context, records, &i, 32, dispositions, 4, (uint32_t)take(in, 1) & 1, &walk);
        HOLDS(i <= 32);
        sound(&walk);
    }
}

static void invalidate(vtx_mmu *mmu, vtx_context *context, input *in) {
    const uint32_t type = (uint32_t)take(in, 1);
    const uint16_t tag = (uint16_t)take(in, 1);
    const uint64_t gva = take_address(in);
    vtx_invlpg(mmu, context, gva);
    vtx_invpcid(mmu, context, type % 5, tag, gva);
    vtx_invept(mmu, type % 4, context->eptp);
    vtx_invvpid(mmu, type % 5, tag % 3, gva);
    if (type > 200)
        vtx_flush_pcid(mmu, context, tag);
    if (type > 220)
        vtx_flush_vpid(mmu, tag % 3);
    if (type > 240)
        vtx_flush_all(mmu);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static vtx_memory *memory;
    input in = {data, data + size};
    if (!memory)
        memory = vtx_memory_new(MEMORY, 0);
    HOLDS(memory);
    const vtx_shape shape = take_shape(&in);
    vtx_mmu *mmu = vtx_mmu_new(memory, &shape);
    HOLDS((mmu == NULL) == (vtx_shape_error(&shape) != NULL));
    if (!mmu)
        return 0;
    memset(vtx_memory_base(memory), 0, MEMORY);
    const uint64_t form = take(&in, 1);
    if (form & 3)
        fill(vtx_memory_base(memory), form << 32 | take(&in, 2));
    take_entries(&in, vtx_memory_base(memory));
    while (in.at < in.end) {
        vtx_context context = take_context(&in);
        switch (take(&in, 1) & 3) {
        case 0:
            invalidate(mmu, &context, &in);
            break;
        case 1:
            run(mmu, &context, &in);
            break;
        default:
            look(mmu, &context, &in);
        }
        take_entries(&in, vtx_memory_base(memory));
    }
    vtx_mmu_free(mmu);
    return 0;
}

#if !defined(FUZZER)
static uint64_t state;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Few bytes are likely to make a shape or an address space by chance: the first are chosen. */
static size_t generate(uint8_t *data, size_t most) {
    const size_t size = 24 + next() % (most - 24);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(next() >> 40);
    if (next() % 8)
        for (size_t i = 12; i < 12 + 7 * 7u && i < size; i += 7) {
            const uint8_t array[7] = {(uint8_t)(1 + next() % 2), (uint8_t)(1 + next() % 3),
                                      (uint8_t)(1 + next() % 7), (uint8_t)(4 << next() % 4),
                                      (uint8_t)(1 << next() % 3), (uint8_t)(next() % 3), 1};
            for (size_t k = 0; k < 7 && i + k < size; k++)
                data[i + k] = array[k];
        }
    if (size > 80) {
        uint8_t *rest = data + 12 + 7 * (data[11] % 8);
        if (next() % 4) {
            *rest++ = VTX_MAX_CACHES; /* no data caches */
        } else {
            const uint8_t cache[5] = {VTX_MAX_CACHES - 1, (uint8_t)(8 << next() % 4),
                                      (uint8_t)(1 << next() % 3), (uint8_t)(next() % 3), 1};
            memcpy(rest, cache, sizeof cache);
            rest += sizeof cache;
        }
        rest[0] |= 1;
        rest[3] %= 8; /* few changes of tables, so that much is left for the operations */
    }
    return size;
}

int main(int argc, char **argv) {
    const unsigned long inputs = argc > 1 ? strtoul(argv[1], NULL, 0) : 2000;
    uint8_t data[900];
    state = argc > 2 ? strtoull(argv[2], NULL, 0) | 1 : 0x9E3779B97F4A7C15ull;
    for (unsigned long i = 0; i < inputs; i++)
        LLVMFuzzerTestOneInput(data, generate(data, sizeof data));
    printf("%lu inputs, %lu translations\n", inputs, translated);
    return inputs >= 1000 && translated < inputs;
}
#endif

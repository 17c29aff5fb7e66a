/* Physical memory: its bounds, its zeros, its appetite. */
#include "check.h"
#include "mem.h"

#include <string.h>

static void bounds(void) {
    vtx_memory *memory = vtx_memory_new(1 << 20, 0);
    REQUIRE(memory);
    uint64_t word = 0x1122334455667788ull;
    CHECK(vtx_memory_size(memory) == 1 << 20);
    CHECK(vtx_memory_write(memory, (1 << 20) - 8, &word, 8));
    CHECK(!vtx_memory_write(memory, (1 << 20) - 7, &word, 8));
    CHECK(!vtx_memory_read(memory, 1 << 20, &word, 1));
    CHECK(vtx_memory_read(memory, 1 << 20, &word, 0));     /* nothing, at the end */
    CHECK(!vtx_memory_read(memory, UINT64_MAX, &word, 8)); /* the sum would wrap */
    CHECK(!vtx_memory_read(memory, 8, &word, UINT64_MAX - 4));
    uint32_t half = 0;
    CHECK(vtx_memory_read(memory, (1 << 20) - 4, &half, 4) && half == 0x11223344);
    CHECK(mem_load64(memory, (1 << 20) - 8) == word);
    mem_or32(memory, (1 << 20) - 8, 0x10);
    mem_or64(memory, (1 << 20) - 8, 1ull << 63);
    CHECK(mem_load64(memory, (1 << 20) - 8) == (word | 0x10 | 1ull << 63));
    CHECK(mem_load32(memory, (1 << 20) - 8) == (uint32_t)(word | 0x10));
    vtx_memory_free(memory);
}

static void sparse(void) {
    vtx_memory *memory = vtx_memory_new(64ull << 30, 0);
    REQUIRE(memory);
    CHECK(vtx_memory_resident(memory) == 0);
    memset((char *)vtx_memory_base(memory) + (63ull << 30), 1, 100);
    const uint64_t resident = vtx_memory_resident(memory);
    CHECK(resident > 0 && resident <= 1 << 16);
    CHECK(vtx_memory_clear(memory) == 0);
    CHECK(vtx_memory_resident(memory) == 0);
    CHECK(mem_load64(memory, 63ull << 30) == 0);
    vtx_memory_free(memory);
    vtx_memory_free(NULL);
}

static void touched_frames(void) {
    vtx_memory *memory = vtx_memory_new(1ull << 30, 1);
    REQUIRE(memory);
    uint64_t frames[2] = {0, 0};
    CHECK(vtx_memory_pages(memory, frames, 2) == 0);
    uint8_t *base = vtx_memory_base(memory);
    base[0x5fff] = 1;
    base[0x40000000 - 1] = 2;
    base[0x7000] = 0; /* touched, and still 0 */
    CHECK(vtx_memory_pages(memory, frames, 1) == 2);
    CHECK(frames[0] == 0x5000 && frames[1] == 0);
    CHECK(vtx_memory_pages(memory, frames, 2) == 2);
    CHECK(frames[1] == 0x40000000 - 4096);
    vtx_memory_free(memory);
}

static void impossible(void) {
    CHECK(vtx_memory_new(0, 0) == NULL);
    CHECK(vtx_memory_new(UINT64_MAX, 1) == NULL);
    CHECK(vtx_memory_new(1ull << 62, 0) == NULL); /* the system refuses */
}

int main(void) {
    bounds();
    sparse();
    touched_frames();
    impossible();
    return outcome();
}

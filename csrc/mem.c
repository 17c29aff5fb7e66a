/* Physical memory: one sparse private mapping, paid for only where it is written. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* MAP_ANONYMOUS, MAP_NORESERVE, madvise, mincore under -std=c11 */
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif

#include "mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

#define MAP_FLAGS            (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
#define FRAME_BYTES 4096u
#define RESIDENT_CHUNK_PAGES 65536u

static uint64_t host_page_size(void) {
    long size = sysconf(_SC_PAGESIZE);
    return size > 0 ? (uint64_t)size : 4096;
}

vtx_memory *vtx_memory_new(uint64_t size, int huge_pages) {
    const uint64_t page = host_page_size();
    if (size == 0 || size > SIZE_MAX - page) {
        errno = EINVAL;
        return NULL;
    }
    vtx_memory *memory = malloc(sizeof *memory);
    if (!memory)
        return NULL;
    void *base = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_FLAGS, -1, 0);
    if (base == MAP_FAILED) {
        free(memory);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    if (huge_pages)
        (void)madvise(base, (size_t)size, MADV_HUGEPAGE); /* a wish: any answer is fine */
#else
    (void)huge_pages;
#endif
    memory->base = base;
    memory->size = size;
    return memory;
}

void vtx_memory_free(vtx_memory *memory) {
    if (!memory)
        return;
    munmap(memory->base, (size_t)memory->size);
    free(memory);
}

uint64_t vtx_memory_size(const vtx_memory *memory) {
    return memory->size;
}

void *vtx_memory_base(vtx_memory *memory) {
    return memory->base;
}

int vtx_memory_clear(vtx_memory *memory) {
    /* Mapping anew over the old pages drops them on every system; MADV_DONTNEED does so on Linux
     * only, and would keep the huge-page advice, which is why it is preferred there. */
#ifdef __linux__
    return madvise(memory->base, (size_t)memory->size, MADV_DONTNEED);
#else
    void *base = mmap(memory->base, (size_t)memory->size, PROT_READ | PROT_WRITE,
                      MAP_FLAGS | MAP_FIXED, -1, 0);
    return base == MAP_FAILED ? -1 : 0;
#endif
}

uint64_t vtx_memory_resident(const vtx_memory *memory) {
    const uint64_t page = host_page_size();
    unsigned char *states = malloc(RESIDENT_CHUNK_PAGES);
    uint64_t resident = 0;
    if (!states)
        return 0;
    for (uint64_t at = 0; at < memory->size; at += RESIDENT_CHUNK_PAGES * page) {
        uint64_t length = memory->size - at;
        if (length > RESIDENT_CHUNK_PAGES * page)
            length = RESIDENT_CHUNK_PAGES * page;
        if (mincore(memory->base + at, (size_t)length, (void *)states) != 0)
            continue;
        for (uint64_t i = 0; i < (length + page - 1) / page; i++)
            resident += (states[i] & 1) * page;
    }
    free(states);
    return resident;
}

/* Does a frame read 0 all through? */
static int is_zero(const uint8_t *frame) {
    static const uint8_t zeros[64];
    for (uint64_t i = 0; i < FRAME_BYTES; i += sizeof zeros)
        if (memcmp(frame + i, zeros, sizeof zeros) != 0)
            return 0;
    return 1;
}

uint64_t vtx_memory_pages(const vtx_memory *memory, uint64_t *addresses, uint64_t room) {
    const uint64_t page = host_page_size();
    unsigned char *states = malloc(RESIDENT_CHUNK_PAGES);
    uint64_t found = 0;
    if (!states)
        return 0;
    for (uint64_t at = 0; at < memory->size; at += RESIDENT_CHUNK_PAGES * page) {
        uint64_t length = memory->size - at;
        if (length > RESIDENT_CHUNK_PAGES * page)
            length = RESIDENT_CHUNK_PAGES * page;
        if (mincore(memory->base + at, (size_t)length, (void *)states) != 0)
            continue;
        for (uint64_t from = 0; from < length; from += FRAME_BYTES) {
            if (!(states[from / page] & 1) || is_zero(memory->base + at + from))
                continue;
            if (found < room)
                addresses[found] = at + from;
            found++;
        }
    }
    free(states);
    return found;
}

int vtx_memory_read(const vtx_memory *memory, uint64_t address, void *out, uint64_t length) {
    if (!mem_holds(memory, address, length))
        return 0;
    memcpy(out, memory->base + address, (size_t)length);
    return 1;
}

int vtx_memory_write(vtx_memory *memory, uint64_t address, const void *from, uint64_t length) {
    if (!mem_holds(memory, address, length))
        return 0;
    memcpy(memory->base + address, from, (size_t)length);
    return 1;
}

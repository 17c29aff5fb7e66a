/* Physical memory as the walkers see it: bounds-checked, atomic accesses of aligned entries. */
#ifndef VTX_MEM_H
#define VTX_MEM_H

#include "core.h"

struct vtx_memory {
    uint8_t *base;
    uint64_t size; /* bytes */
};

/* Does [address, address + length) lie within memory? Never overflows. */
static inline int mem_holds(const vtx_memory *memory, uint64_t address, uint64_t length) {
    return length <= memory->size && address <= memory->size - length;
}

/* Loads and OR-updates of paging-structure entries are atomic: two processors may walk one table.
 * The caller has checked the address with mem_holds; entries are naturally aligned. */
static inline uint64_t mem_load64(const vtx_memory *memory, uint64_t address) {
    return __atomic_load_n((const uint64_t *)(const void *)(memory->base + address),
                           __ATOMIC_RELAXED);
}

static inline uint32_t mem_load32(const vtx_memory *memory, uint64_t address) {
    return __atomic_load_n((const uint32_t *)(const void *)(memory->base + address),
                           __ATOMIC_RELAXED);
}

static inline void mem_or64(vtx_memory *memory, uint64_t address, uint64_t flags) {
    __atomic_fetch_or((uint64_t *)(void *)(memory->base + address), flags, __ATOMIC_RELAXED);
}

static inline void mem_or32(vtx_memory *memory, uint64_t address, uint32_t flags) {
    __atomic_fetch_or((uint32_t *)(void *)(memory->base + address), flags, __ATOMIC_RELAXED);
}

static inline void mem_store64(vtx_memory *memory, uint64_t address, uint64_t value) {
    __atomic_store_n((uint64_t *)(void *)(memory->base + address), value, __ATOMIC_RELAXED);
}

#endif

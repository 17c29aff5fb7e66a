/* A geometry: what is impossible, and how one is made. */
#include "tlbsim_array.h"

#include <stdlib.h>
#include <string.h>

/* ---- What is impossible --------------------------------------------------------------------- */

static const char *array_error(const vtx_sim_array *array) {
    if (array->level < 1 || array->level > VTX_SIM_LEVELS)
        return "a TLB level is 1 to 4";
    if (array->slot >= VTX_SIM_SLOTS)
        return "there can be at most 16 levels";
    if (!array->sides || array->sides > 3)
        return "a TLB serves instruction fetches, data or both";
    if (!array->pages || array->pages > 7)
        return "a TLB holds pages of 4K, 2M or 1G";
    if (array->replacement > VTX_SIM_RANDOM || array->index > VTX_SIM_XOR)
        return "an unknown replacement or index";
    if (!array->sets || array->sets > 1u << 24)
        return "a TLB has 1 to 16777216 sets";
    if (!array->ways || array->ways > VTX_SIM_WAYS)
        return "a set has 1 to 4096 ways";
    if ((uint64_t)array->sets * array->ways > 1u << 24)
        return "a TLB has at most 16777216 entries";
    if (array->index == VTX_SIM_XOR && (array->sets & (array->sets - 1)))
        return "with the index xor the number of sets must be a power of two";
    if (array->replacement == VTX_SIM_TREE_PLRU && (array->ways & (array->ways - 1)))
        return "with tree-PLRU the number of ways must be a power of two";
    return NULL;
}

static const char *pages_error(const vtx_sim_pages *pages) {
    if (pages->size[0] > 2 || pages->size[1] > 2 || pages->range_count > VTX_SIM_RANGES)
        return "pages have 4K, 2M or 1G, and at most 64 ranges of their own";
    uint64_t end = 0;
    for (uint32_t i = 0; i < pages->range_count; i++) {
        const vtx_sim_range *range = &pages->ranges[i];
        if (range->size > 2 || range->start < end || range->stop <= range->start)
            return "ranges of pages must be in ascending order, apart, and not empty";
        end = range->stop;
    }
    return NULL;
}

static const char *walk_error(const vtx_sim_geometry *geometry) {
    if (geometry->guest_levels < 4 || geometry->guest_levels > 5)
        return "paging has 4 or 5 levels";
    if (geometry->ept_levels && (geometry->ept_levels < 4 || geometry->ept_levels > 5))
        return "EPT has 4 or 5 levels";
    if (geometry->nested > VTX_SIM_WAYS)
        return "a cache of a walker has at most 4096 entries";
    for (unsigned level = 0; level < 6; level++)
        if (geometry->guest_cache[level] > VTX_SIM_WAYS || geometry->ept_cache[level] > VTX_SIM_WAYS)
            return "a cache of a walker has at most 4096 entries";
    return NULL;
}

/* Arrays of one level and side must not contradict each other; first levels must be there. */
static const char *side_error(const vtx_sim_geometry *geometry, unsigned side) {
    uint32_t slots[VTX_SIM_LEVELS + 1] = {0};
    uint32_t pages[VTX_SIM_LEVELS + 1] = {0};
    for (uint32_t i = 0; i < geometry->array_count; i++) {
        const vtx_sim_array *array = &geometry->arrays[i];
        if (!(array->sides >> side & 1))
            continue;
        if (pages[array->level] && slots[array->level] != array->slot)
            return "a side has two TLBs on one level that count apart";
        if (pages[array->level] & array->pages)
            return "two arrays of one level hold pages of the same size";
        slots[array->level] = array->slot;
        pages[array->level] |= array->pages;
    }
    if (!(geometry->flags >> side & 1))
        return NULL;
    for (unsigned level = 2; level <= VTX_SIM_LEVELS; level++)
        if (pages[level] && !pages[level - 1])
            return "a level is missing below another";
    if (!pages[1])
        return side ? "data has no first-level TLB" : "instruction fetches have no first-level TLB";
    return NULL;
}

/* One name, one level: all arrays that count together serve the same sides of the same level. */
static const char *slot_error(const vtx_sim_geometry *geometry) {
    for (uint32_t i = 0; i < geometry->array_count; i++) {
        for (uint32_t j = 0; j < i; j++) {
            const vtx_sim_array *a = &geometry->arrays[i];
            const vtx_sim_array *b = &geometry->arrays[j];
            if (a->slot == b->slot && (a->level != b->level || a->sides != b->sides))
                return "arrays of different levels or sides count together";
        }
    }
    return NULL;
}

const char *vtx_sim_error(const vtx_sim_geometry *geometry) {
    if (geometry->array_count > VTX_SIM_ARRAYS)
        return "there can be at most 32 arrays";
    if (!(geometry->flags & (VTX_SIM_FETCHES | VTX_SIM_DATA)))
        return "the stream is neither fetches nor data";
    const char *error = NULL;
    for (uint32_t i = 0; i < geometry->array_count && !error; i++)
        error = array_error(&geometry->arrays[i]);
    if (!error)
        error = slot_error(geometry);
    for (unsigned side = 0; side < 2 && !error; side++)
        error = side_error(geometry, side);
    if (!error)
        error = pages_error(&geometry->guest);
    if (!error)
        error = pages_error(&geometry->ept);
    return error ? error : walk_error(geometry);
}

/* ---- Making one ----------------------------------------------------------------------------- */

#if defined(SIM_AVX2)
static enum sim_vectors vectors_of(uint32_t flags) {
    if (flags & VTX_SIM_PORTABLE || !__builtin_cpu_supports("avx2") ||
        !__builtin_cpu_supports("bmi"))
        return SIM_PORTABLE;
    if (flags & VTX_SIM_NARROW || !__builtin_cpu_supports("avx512f") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return SIM_WITH_AVX2;
    return SIM_WITH_AVX512;
}
#else
static enum sim_vectors vectors_of(uint32_t flags) {
    (void)flags;
    return SIM_PORTABLE;
}
#endif

/* A level that lacks a size keeps such pages in parts of the next smaller size it has. */
static void set_stored(sim_level *level) {
    for (unsigned size = 0; size < 3; size++) {
        level->stored[size] = (uint8_t)size;
        if (!level->array[size] && size && level->array[size - 1]) {
            level->array[size] = level->array[size - 1];
            level->stored[size] = level->stored[size - 1];
        }
    }
}

static void set_levels(vtx_sim *sim) {
    for (uint32_t i = 0; i < sim->geometry.array_count; i++) {
        const vtx_sim_array *array = &sim->geometry.arrays[i];
        for (unsigned side = 0; side < 2; side++) {
            if (!(array->sides >> side & 1))
                continue;
            sim_level *level = &sim->levels[side][array->level - 1];
            level->slot = &sim->counts.slots[array->slot];
            for (unsigned size = 0; size < 3; size++)
                if (array->pages >> size & 1)
                    level->array[size] = &sim->arrays[i];
            if (array->level > sim->level_count[side])
                sim->level_count[side] = array->level;
        }
    }
    for (unsigned side = 0; side < 2; side++)
        for (unsigned level = 0; level < VTX_SIM_LEVELS; level++)
            set_stored(&sim->levels[side][level]);
}

static void set_mode(vtx_sim *sim) {
    sim->used[0] = (sim->geometry.flags & VTX_SIM_FETCHES) != 0;
    sim->used[1] = (sim->geometry.flags & VTX_SIM_DATA) != 0;
    const int shared = sim->levels[0][0].slot == sim->levels[1][0].slot;
    sim->mode = !sim->used[1] ? SIM_FETCHES : !sim->used[0] ? SIM_DATA : shared ? SIM_TOGETHER : SIM_SPLIT;
    sim->twice = (sim->geometry.flags & VTX_SIM_MODIFY_TWICE) != 0;
    const vtx_sim_pages *ept = &sim->geometry.ept;
    sim->uniform = !sim->geometry.guest.range_count &&
                   !(sim->geometry.ept_levels && ept->range_count);
    for (unsigned side = 0; side < 2; side++) {
        unsigned guest;
        sim->size[side] = (uint8_t)sim_size_at(sim, side, 0, &guest);
    }
}

/* All pages of the stream have one size, which the first level keeps them as (or not at all). */
static int front_is_plain(const vtx_sim *sim) {
    const unsigned size = sim->size[0];
    return sim->uniform && sim->size[1] == size && sim->levels[0][0].stored[size] == size &&
           sim->levels[1][0].stored[size] == size;
}

/* Neither dimensions nor caches: what a walk reads follows from the size of the page alone. */
static int walks_are_plain(const vtx_sim *sim) {
    uint32_t entries = 0;
    for (unsigned level = 0; level < 6; level++)
        entries |= sim->geometry.guest_cache[level];
    return sim->uniform && !sim->geometry.ept_levels && !entries;
}

/* The sets of pages whose numbers differ in the low four bits: SIM_CLASSES if they are never the
 * same, 1 if nothing is known. */
static uint8_t front_step(const sim_array *array) {
    if (!array || array->index != VTX_SIM_MODULO)
        return 1;
    if (array->sets % SIM_CLASSES == 0)
        return SIM_CLASSES;
    return array->power_of_two ? (uint8_t)array->sets : 1;
}

static void set_front(vtx_sim *sim) {
    sim_front *front = &sim->front;
    const int plain = front_is_plain(sim);
    front->shift = plain ? sim_shift[sim->size[0]] : 12;
    for (unsigned side = 0; side < 2; side++)
        front->step[side] = plain ? front_step(sim->levels[side][0].array[sim->size[side]]) : 1;
    for (unsigned side = 0; side < 2; side++)
        for (unsigned n = 0; n < SIM_CLASSES; n++)
            for (unsigned other = n % front->step[side]; other < SIM_CLASSES;
                 other += front->step[side])
                front->sharing[side][n] |= (uint16_t)(1u << other);
    /* If fetches and data hold one address as pages of two sizes, a page of one is none of the
     * other. */
    const vtx_sim_pages *guest = &sim->geometry.guest;
    sim->frontal = sim->mode != SIM_TOGETHER || guest->size[0] == guest->size[1];
    memset(front->tags, 0xFF, sizeof front->tags);
}

vtx_sim *vtx_sim_new(const vtx_sim_geometry *geometry) {
    if (vtx_sim_error(geometry))
        return NULL;
    vtx_sim *sim = calloc(1, sizeof *sim);
    if (!sim)
        return NULL;
    sim->geometry = *geometry;
    sim->vectors = (uint8_t)vectors_of(geometry->flags);
    set_levels(sim);
    int ok = 1;
    set_mode(sim);
    for (uint32_t i = 0; i < geometry->array_count; i++) {
        vtx_sim_array like = geometry->arrays[i];
        if (sim->uniform && sim->size[0] == sim->size[1] && (like.pages >> sim->size[0] & 1))
            like.pages = 1u << sim->size[0]; /* no other size will come: shorter tags */
        ok &= sim_array_init(&sim->arrays[i], &like);
    }
    ok &= sim_walker_init(&sim->walker, &sim->geometry, &sim->counts);
    if (!ok) {
        vtx_sim_free(sim);
        return NULL;
    }
    sim->plain = (uint8_t)walks_are_plain(sim);
    set_front(sim);
    sim_set_lean(sim);
    sim_set_loop(sim);
    return sim;
}

void vtx_sim_free(vtx_sim *sim) {
    if (!sim)
        return;
    for (uint32_t i = 0; i < VTX_SIM_ARRAYS; i++)
        sim_array_free(&sim->arrays[i]);
    sim_walker_free(&sim->walker);
    free(sim);
}

/* What a walk reads: the references of a one- or two-dimensional walk, less those that
 * paging-structure caches and the TLB for guest-physical mappings save.
 *
 * There are no tables in memory: every page is mapped, and which entries a walk reads follows from
 * the address and the sizes of its pages. Guest-physical addresses of data are the linear ones; the
 * guest's tables lie elsewhere, in the order in which walks first used them. g guest levels over h
 * EPT levels make (g + 1)(h + 1) - 1 references when nothing is cached. walk.c is the same walk over
 * real tables. */
#include "tlbsim_array.h"

#include <stdlib.h>
#include <string.h>

/* ---- Where the guest's tables lie ----------------------------------------------------------- */

static uint64_t *find_key(const sim_tables *tables, uint64_t key) {
    uint64_t slot = key * 0x9E3779B97F4A7C15ull >> 20 & tables->mask;
    while (tables->keys[slot] && tables->keys[slot] != key)
        slot = (slot + 1) & tables->mask;
    return &tables->keys[slot];
}

static int tables_init(sim_tables *tables, uint64_t count) {
    *tables = (sim_tables){.mask = count - 1};
    tables->keys = calloc(count, sizeof *tables->keys);
    tables->frames = calloc(count, sizeof *tables->frames);
    return tables->keys && tables->frames;
}

static void tables_free(sim_tables *tables) {
    free(tables->keys);
    free(tables->frames);
}

static int tables_grow(sim_tables *tables) {
    sim_tables larger;
    if (!tables_init(&larger, 2 * (tables->mask + 1))) {
        tables_free(&larger);
        return 0;
    }
    for (uint64_t i = 0; i <= tables->mask; i++) {
        if (!tables->keys[i])
            continue;
        uint64_t *place = find_key(&larger, tables->keys[i]);
        *place = tables->keys[i];
        larger.frames[place - larger.keys] = tables->frames[i];
    }
    larger.used = tables->used;
    tables_free(tables);
    *tables = larger;
    return 1;
}

/* Guest-physical address of the table of `level` that serves `address`. */
static uint64_t table_of(sim_walker *walker, uint64_t address, unsigned level) {
    sim_tables *tables = &walker->tables;
    /* Of 48 bits an address has no more than 27 above a level-1 table, so keys are distinct. */
    const uint64_t key = (address >> (12 + 9 * level)) << 3 | level;
    uint64_t *place = find_key(tables, key);
    if (!*place) {
        if (2 * (uint64_t)tables->used > tables->mask) {
            if (!tables_grow(tables)) {
                walker->failed = 1;
                return walker->table_base;
            }
            place = find_key(tables, key);
        }
        *place = key;
        tables->frames[place - tables->keys] = tables->used++;
    }
    return walker->table_base + ((uint64_t)tables->frames[place - tables->keys] << 12);
}

/* ---- The walk ------------------------------------------------------------------------------- */

/* Find the deepest table that the caches of a dimension know; levels that miss are filled, because
 * the walk will read their entries. Returns the level of the first entry to read. */
static unsigned skip(sim_array caches[6], uint64_t hits[6], uint64_t address, unsigned leaf,
                     unsigned top) {
    for (unsigned level = leaf + 1; level <= top; level++) {
        if (!caches[level].ways)
            continue;
        if (sim_array_touch(&caches[level], address >> (3 + 9 * level), 0)) {
            hits[level]++;
            return level - 1;
        }
    }
    return top;
}

/* Translate a guest-physical address. */
static void walk_ept(sim_walker *walker, uint64_t gpa) {
    if (!walker->ept_levels)
        return;
    vtx_sim_counts *counts = walker->counts;
    const unsigned size = sim_page_size(walker->ept_pages, gpa, 1);
    if (walker->nested.ways) {
        if (sim_array_touch(&walker->nested, gpa >> sim_shift[size], size)) {
            counts->nested_hits++;
            return;
        }
        counts->nested_misses++;
    }
    const unsigned leaf = size + 1;
    unsigned level =
        skip(walker->ept_cache, counts->ept_cache_hits, gpa, leaf, walker->ept_levels);
    for (; level >= leaf; level--)
        counts->ept_references[level]++;
}

void sim_walk(sim_walker *walker, uint64_t address, unsigned guest_size) {
    vtx_sim_counts *counts = walker->counts;
    const unsigned leaf = guest_size + 1;
    const unsigned top = walker->guest_levels;
    const unsigned first = skip(walker->guest_cache, counts->guest_cache_hits, address, leaf, top);
    for (unsigned level = first; level >= leaf; level--) {
        /* A paging-structure cache holds the host-physical address of the table. */
        if (walker->ept_levels && (level == top || level < first))
            walk_ept(walker, table_of(walker, address, level));
        counts->guest_references[level]++;
    }
    walk_ept(walker, address);
}

/* ---- Its caches ----------------------------------------------------------------------------- */

static int cache_of(sim_array *array, uint32_t entries) {
    const vtx_sim_array like = {.sets = 1, .ways = entries, .pages = 7};
    return sim_array_init(array, &like);
}

int sim_walker_init(sim_walker *walker, const vtx_sim_geometry *geometry, vtx_sim_counts *counts) {
    memset(walker, 0, sizeof *walker);
    walker->guest_levels = geometry->guest_levels;
    walker->ept_levels = geometry->ept_levels;
    walker->table_base = geometry->table_base;
    walker->ept_pages = &geometry->ept;
    walker->counts = counts;
    int ok = cache_of(&walker->nested, geometry->nested);
    for (unsigned level = 2; level < 6; level++) {
        ok &= cache_of(&walker->guest_cache[level], geometry->guest_cache[level]);
        ok &= cache_of(&walker->ept_cache[level], geometry->ept_cache[level]);
    }
    return tables_init(&walker->tables, 1024) && ok;
}

void sim_walker_free(sim_walker *walker) {
    sim_array_free(&walker->nested);
    for (unsigned level = 0; level < 6; level++) {
        sim_array_free(&walker->guest_cache[level]);
        sim_array_free(&walker->ept_cache[level]);
    }
    tables_free(&walker->tables);
}

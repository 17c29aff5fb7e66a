/* TLBs by geometry: counts against time stamps, tags that widen, walks against the formula. */
#include "check.h"
#include "core.h"

#include <string.h>

static vtx_sim_geometry plain(uint32_t sets1, uint32_t ways1, uint32_t sets2, uint32_t ways2) {
    vtx_sim_geometry g;
    memset(&g, 0, sizeof g);
    g.flags = VTX_SIM_FETCHES | VTX_SIM_DATA;
    g.guest_levels = 4;
    g.array_count = 2;
    g.arrays[0] = (vtx_sim_array){.level = 1, .slot = 0, .sides = 3, .pages = 7,
                                  .sets = sets1, .ways = ways1};
    g.arrays[1] = (vtx_sim_array){.level = 2, .slot = 1, .sides = 3, .pages = 7,
                                  .sets = sets2, .ways = ways2};
    return g;
}

/* ---- A second implementation: every entry bears the time of its last use -------------------- */

enum { ENTRIES = 4096 };
typedef struct {
    uint64_t page[ENTRIES], time[ENTRIES];
    uint32_t sets, ways;
} stamped;
static stamped levels[2];
static uint64_t now_;

static int stamped_touch(stamped *s, uint64_t page) {
    const size_t first = (size_t)(page % s->sets) * s->ways;
    size_t oldest = first;
    for (size_t i = first; i < first + s->ways; i++) {
        if (s->time[i] && s->page[i] == page) {
            s->time[i] = ++now_;
            return 1;
        }
        if (s->time[i] < s->time[oldest])
            oldest = i;
    }
    s->page[oldest] = page;
    s->time[oldest] = ++now_;
    return 0;
}

static uint64_t random_record(uint64_t spread) {
    const uint64_t page = below(3) ? below(40) * 7919 % spread : below(spread);
    const uint64_t offset = below(20) ? below(4000) : 4096 - below(8) - 1;
    return below(4) << 62 | (1 + below(16)) << 48 | page << 12 | offset;
}

static void against_stamps(uint32_t sets1, uint32_t ways1, uint32_t sets2, uint32_t ways2,
                           uint64_t spread, uint32_t flags) {
    vtx_sim_geometry g = plain(sets1, ways1, sets2, ways2);
    g.flags |= flags;
    vtx_sim *sim = vtx_sim_new(&g);
    REQUIRE(sim);
    memset(levels, 0, sizeof levels);
    levels[0].sets = sets1, levels[0].ways = ways1;
    levels[1].sets = sets2, levels[1].ways = ways2;
    uint64_t hits[2] = {0, 0}, walks = 0;
    static uint64_t records[5000];
    for (unsigned i = 0; i < 5000; i++) {
        const uint64_t r = records[i] = random_record(spread);
        const uint64_t last = (r & 0xFFFFFFFFFFFF) + (r >> 48 & 0x3FFF) - 1;
        for (uint64_t page = (r & 0xFFFFFFFFFFFF) >> 12; page <= last >> 12; page++) {
            const uint64_t wrapped = page & 0xFFFFFFFFF;
            if (stamped_touch(&levels[0], wrapped))
                hits[0]++;
            else if (stamped_touch(&levels[1], wrapped))
                hits[1]++;
            else
                walks++;
        }
    }
    CHECK(vtx_sim_run(&sim, 1, records, 5000));
    vtx_sim_counts c;
    vtx_sim_counted(sim, &c);
    uint64_t sums[3] = {0, 0, 0};
    for (unsigned kind = 0; kind < 4; kind++) {
        sums[0] += c.slots[0].hits[kind];
        sums[1] += c.slots[1].hits[kind];
        sums[2] += c.walks[kind];
    }
    CHECK(sums[0] == hits[0]);
    CHECK(sums[1] == hits[1]);
    CHECK(sums[2] == walks);
    vtx_sim_free(sim);
}

/* The highest pages of the address space have the tag that is an empty way in 32 bits. */
static void tags_widen(void) {
    vtx_sim_geometry g = plain(16, 4, 16, 4);
    vtx_sim *sim = vtx_sim_new(&g);
    REQUIRE(sim);
    const uint64_t top = 1ull << 62 | 8ull << 48 | 0xFFFFFFFFF000;
    const uint64_t records[4] = {top, top - 0x10000, top, top - 0x10000};
    CHECK(vtx_sim_run(&sim, 1, records, 4));
    vtx_sim_counts c;
    vtx_sim_counted(sim, &c);
    CHECK(c.slots[0].hits[VTX_LOAD] == 2 && c.slots[0].misses[VTX_LOAD] == 2);
    CHECK(c.walks[VTX_LOAD] == 2 && c.guest_references[1] == 2 && c.guest_references[4] == 2);
    vtx_sim_free(sim);
}

static void walks_follow_the_formula(void) {
    for (uint32_t g = 4; g < 6; g++) {
        for (uint32_t h = 4; h < 6; h++) {
            vtx_sim_geometry geometry = plain(1, 1, 1, 1);
            geometry.guest_levels = g;
            geometry.ept_levels = h;
            vtx_sim *sim = vtx_sim_new(&geometry);
            REQUIRE(sim);
            const uint64_t record = 1ull << 62 | 8ull << 48 | 0x7000;
            CHECK(vtx_sim_run(&sim, 1, &record, 1));
            vtx_sim_counts c;
            vtx_sim_counted(sim, &c);
            uint64_t references = 0;
            for (unsigned level = 1; level < 6; level++)
                references += c.guest_references[level] + c.ept_references[level];
            CHECK(references == (g + 1) * (h + 1) - 1);
            vtx_sim_free(sim);
        }
    }
}

/* Many guest tables: their layout grows. */
static void tables_grow(void) {
    vtx_sim_geometry g = plain(1, 1, 1, 1);
    g.ept_levels = 4;
    g.nested = 4;
    vtx_sim *sim = vtx_sim_new(&g);
    REQUIRE(sim);
    static uint64_t records[4000];
    for (uint64_t i = 0; i < 4000; i++)
        records[i] = 1ull << 62 | 8ull << 48 | i << 30;
    CHECK(vtx_sim_run(&sim, 1, records, 4000));
    vtx_sim_counts c;
    vtx_sim_counted(sim, &c);
    CHECK(c.walks[VTX_LOAD] == 4000);
    CHECK(c.guest_references[1] == 4000 && c.guest_references[4] == 4000);
    vtx_sim_free(sim);
}

static void impossible(void) {
    vtx_sim_geometry g = plain(16, 4, 128, 12);
    CHECK(vtx_sim_error(&g) == NULL);
    g.arrays[0].ways = 0;
    CHECK(vtx_sim_error(&g) && !vtx_sim_new(&g));
    g = plain(16, 4, 1u << 24, 4096);
    CHECK(vtx_sim_error(&g) && !vtx_sim_new(&g));
    g = plain(12, 4, 128, 12);
    g.arrays[0].index = VTX_SIM_XOR;
    CHECK(vtx_sim_error(&g) && !vtx_sim_new(&g));
    g = plain(16, 3, 128, 12);
    g.arrays[0].replacement = VTX_SIM_TREE_PLRU;
    CHECK(vtx_sim_error(&g) && !vtx_sim_new(&g));
    g = plain(16, 4, 128, 12);
    g.arrays[1].level = 3;
    CHECK(vtx_sim_error(&g) && !vtx_sim_new(&g));
    g = plain(16, 4, 128, 12);
    g.flags = 0;
    CHECK(vtx_sim_error(&g) && !vtx_sim_new(&g));
    g = plain(16, 4, 128, 12);
    g.guest_levels = 3;
    CHECK(vtx_sim_error(&g) && !vtx_sim_new(&g));
    vtx_sim_free(NULL);
}

int main(void) {
    static const uint32_t shapes[][4] = {{16, 4, 128, 12}, {8, 8, 64, 16}, {1, 64, 96, 16},
                                         {12, 5, 100, 3},  {1, 1, 1, 1},   {64, 1, 256, 8},
                                         {16, 8, 64, 4},   {3, 20, 5, 6}};
    for (unsigned i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (unsigned k = 0; k < 3; k++) {
            const uint32_t flags = (uint32_t[]){0, VTX_SIM_NARROW, VTX_SIM_PORTABLE}[k];
            const uint32_t *s = shapes[i];
            against_stamps(s[0], s[1], s[2], s[3], 40, flags);
            against_stamps(s[0], s[1], s[2], s[3], 2000, flags);
            against_stamps(s[0], s[1], s[2], s[3], 1ull << 36, flags);
        }
    }
    tags_widen();
    walks_follow_the_formula();
    tables_grow();
    impossible();
    return outcome();
}

/* TLBs of any geometry over a stream: one access, and what all of them add up to. */
#include "tlbsim_array.h"

#include <stdlib.h>
#include <string.h>

/* ---- Page sizes ----------------------------------------------------------------------------- */

unsigned sim_page_size(const vtx_sim_pages *pages, uint64_t address, unsigned side) {
    uint32_t low = 0;
    uint32_t high = pages->range_count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (address >= pages->ranges[middle].stop)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < pages->range_count && address >= pages->ranges[low].start)
        return pages->ranges[low].size;
    return pages->size[side];
}

/* ---- One access ----------------------------------------------------------------------------- */

unsigned sim_size_at(const vtx_sim *sim, unsigned side, uint64_t address, unsigned *guest) {
    *guest = sim_page_size(&sim->geometry.guest, address, side);
    if (!sim->geometry.ept_levels)
        return *guest;
    const unsigned ept = sim_page_size(&sim->geometry.ept, address, 1);
    return ept < *guest ? ept : *guest;
}

NOINLINE void sim_walk_for(vtx_sim *sim, unsigned side, uint64_t address) {
    unsigned guest;
    sim_size_at(sim, side, address, &guest);
    sim_walk(&sim->walker, address, guest);
}

void sim_look_up(vtx_sim *sim, unsigned side, uint32_t kind, uint64_t address) {
    unsigned guest;
    const unsigned size = sim->uniform ? sim->size[side] : sim_size_at(sim, side, address, &guest);
    const sim_level *level = sim->levels[side];
    front_note(&sim->front, sim->mode == SIM_TOGETHER ? 0 : side, address,
               sim->frontal && level->array[size]);
    if (sim_widens(address))
        sim->lean_one = NULL, sim->lean_all = NULL;
    for (unsigned i = sim->level_count[side]; i; i--, level++) {
        sim_array *array = level->array[size];
        const unsigned stored = level->stored[size];
        if (array && sim_array_touch(array, address >> sim_shift[stored], stored)) {
            level->slot->hits[kind]++;
            return;
        }
        level->slot->misses[kind]++;
    }
    sim_missed(sim, side, kind, address);
}

/* A reference that reaches beyond 4 KBytes, or is a modify that counts twice. */
NOINLINE static void refer_long(vtx_sim *sim, uint64_t record) {
    const uint32_t kind = record_kind(record);
    const unsigned side = kind != VTX_FETCH;
    const uint64_t address = record_address(record);
    const uint64_t bytes = record_size(record);
    const uint64_t last = record_address(address + (bytes ? bytes - 1 : 0));
    unsigned guest;
    const unsigned shift = sim_shift[sim_size_at(sim, side, address, &guest)];
    const int crosses = address >> shift != last >> shift;
    const int both = crosses && !(sim->geometry.flags & VTX_SIM_FIRST_PAGE);
    const int twice = kind == VTX_MODIFY && sim->twice;
    for (int i = 0; i <= twice; i++) {
        sim_look_up(sim, side, kind, address);
        if (both)
            sim_look_up(sim, side, kind, last);
    }
    sim->counts.crossings += (uint64_t)crosses;
    sim->counts.accesses[kind] += (uint64_t)both << twice; /* beyond one a record */
}

/* The front is not asked again for a second lookup: looking up what it would have passed changes
 * nothing. */
NOINLINE void sim_refer(vtx_sim *sim, uint64_t record) {
    const uint32_t kind = record_kind(record);
    const unsigned side = kind != VTX_FETCH;
    if (!sim->used[side])
        return;
    if (record_reaches(record) || (kind == VTX_MODIFY && sim->twice))
        refer_long(sim, record);
    else if (sim->lean_one)
        sim->lean_one(sim, record);
    else
        sim_look_up(sim, side, kind, record_address(record));
}

/* ---- A stream ------------------------------------------------------------------------------- */

/* The records of a piece that are of use. */
static unsigned select_used(const vtx_sim *sim, const uint64_t *records, unsigned count,
                            uint64_t *used) {
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++) {
        used[n] = records[i];
        n += sim->used[record_kind(records[i]) != VTX_FETCH];
    }
    return n;
}

static void run_dense(vtx_sim *sim, const uint64_t *records, unsigned count) {
    uint64_t used[SIM_PIECE];
    if (!sim->used[0] || !sim->used[1]) {
        count = select_used(sim, records, count, used);
        records = used;
    }
    const unsigned done = sim->lean_all(sim, records, count);
    if (done < count || !sim->dense)
        sim_lean_front(sim);
    if (done < count)
        sim->loop(sim, records + done, count - done);
}

static void run(vtx_sim *sim, const uint64_t *records, unsigned count) {
    if (sim->dense && sim->lean_all)
        run_dense(sim, records, count);
    else
        sim->dense = sim->loop(sim, records, count) * SIM_DENSE_SHARE > count;
}

int vtx_sim_run(vtx_sim *const *sims, uint64_t sim_count, const uint64_t *records,
                uint64_t count) {
    for (uint64_t i = 0; i < count; i += SIM_PIECE) {
        const unsigned piece = (unsigned)(count - i < SIM_PIECE ? count - i : SIM_PIECE);
        uint64_t kinds[4] = {0, 0, 0, 0};
        sim_count_kinds(records + i, piece, kinds, sim_count && sims[0]->vectors);
        for (uint64_t s = 0; s < sim_count; s++) {
            for (unsigned kind = 0; kind < 4; kind++)
                sims[s]->counts.records[kind] += kinds[kind];
            run(sims[s], records + i, piece);
            if (sims[s]->walker.failed)
                return 0;
        }
    }
    return 1;
}

/* ---- Counts --------------------------------------------------------------------------------- */

void vtx_sim_counted(const vtx_sim *sim, vtx_sim_counts *out) {
    *out = sim->counts;
    const int twice = (sim->geometry.flags & VTX_SIM_MODIFY_TWICE) != 0;
    for (unsigned kind = 0; kind < 4; kind++) {
        const unsigned side = kind != VTX_FETCH;
        if (!sim->used[side]) {
            out->accesses[kind] = 0;
            continue;
        }
        out->accesses[kind] += out->records[kind] << (kind == VTX_MODIFY && twice);
        vtx_sim_slot *first = &out->slots[sim->levels[side][0].slot - sim->counts.slots];
        first->hits[kind] = out->accesses[kind] - first->misses[kind];
        for (unsigned level = sim->geometry.guest_levels; sim->plain && level > sim->size[side];
             level--)
            out->guest_references[level] += out->walks[kind];
    }
}

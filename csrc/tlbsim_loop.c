/* The loop over records for every processor, and the least that one could do (for benchmarks). */
#include "tlbsim.h"

/* Not 0: this record is not passed. The page is the last used one of its set, or else its kind is
 * of no use. */
INLINE int stops(const sim_front *front, uint64_t record, enum sim_mode mode, unsigned shift) {
    const unsigned data = record >= 1ull << 62;
    const unsigned side = mode == SIM_SPLIT ? data : mode == SIM_DATA;
    const uint32_t tag = (uint32_t)(record << 16 >> 16 >> shift >> 4);
    const unsigned class = (unsigned)(record >> shift) % SIM_CLASSES;
    const int other = (front->tags[side][class] != tag) | (tag == SIM_EMPTY_NARROW) |
                      (record_reaches(record) != 0);
    if (mode == SIM_FETCHES)
        return other & !data;
    if (mode == SIM_DATA)
        return other & (int)data;
    return other;
}

INLINE unsigned loop(vtx_sim *sim, const uint64_t *records, unsigned count, enum sim_mode mode,
                     unsigned shift) {
    const sim_front *front = &sim->front;
    unsigned referred = 0;
    unsigned i = 0;
    for (; i + 4 <= count; i += 4) {
        const uint64_t *r = records + i;
        if ((stops(front, r[0], mode, shift) | stops(front, r[1], mode, shift) |
             stops(front, r[2], mode, shift) | stops(front, r[3], mode, shift)) == 0)
            continue;
        for (unsigned k = 0; k < 4; k++) {
            if (stops(front, r[k], mode, shift)) {
                sim_refer(sim, r[k]);
                referred++;
            }
        }
    }
    for (; i < count; i++) {
        if (stops(front, records[i], mode, shift)) {
            sim_refer(sim, records[i]);
            referred++;
        }
    }
    return referred;
}

#define LOOP(NAME, MODE)                                                                           \
    static unsigned NAME(vtx_sim *sim, const uint64_t *records, unsigned count) {                  \
        if (sim->front.shift == 12)                                                                \
            return loop(sim, records, count, MODE, 12);                                            \
        return loop(sim, records, count, MODE, sim->front.shift);                                  \
    }

LOOP(loop_split, SIM_SPLIT)
LOOP(loop_together, SIM_TOGETHER)
LOOP(loop_fetches, SIM_FETCHES)
LOOP(loop_data, SIM_DATA)

sim_loop *sim_loop_portable(const vtx_sim *sim) {
    switch ((enum sim_mode)sim->mode) {
    case SIM_TOGETHER: return loop_together;
    case SIM_FETCHES: return loop_fetches;
    case SIM_DATA: return loop_data;
    default: return loop_split;
    }
}

void sim_set_loop(vtx_sim *sim) {
    sim->loop = sim_loop_portable(sim);
#if defined(SIM_AVX2)
    if (sim->vectors && sim->front.shift == 12)
        sim->loop =
            sim->vectors == SIM_WITH_AVX512 ? sim_loop_avx512(sim) : sim_loop_avx2(sim);
#endif
}

/* Sums of bit 63, of the kinds, and of bits 63 and 62 together say how many there are of each. */
static void count_kinds(const uint64_t *records, unsigned count, uint64_t kinds[4]) {
    uint64_t high = 0, sum = 0, both = 0;
    for (unsigned i = 0; i < count; i++) {
        const uint64_t record = records[i];
        high += record >> 63;
        sum += record >> 62;
        both += (record & record << 1) >> 63;
    }
    const uint64_t low = sum - 2 * high;
    kinds[VTX_MODIFY] += both;
    kinds[VTX_STORE] += high - both;
    kinds[VTX_LOAD] += low - both;
    kinds[VTX_FETCH] += count - high - low + both;
}

void sim_count_kinds(const uint64_t *records, unsigned count, uint64_t kinds[4], int vectors) {
#if defined(SIM_AVX2)
    if (vectors) {
        sim_count_kinds_avx2(records, count, kinds);
        return;
    }
#endif
    (void)vectors;
    count_kinds(records, count, kinds);
}

uint64_t vtx_sim_least(const uint64_t *records, uint64_t count, uint64_t kinds[4]) {
    uint64_t last[2][16] = {{0}};
    uint64_t misses = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t kind = record_kind(records[i]);
        const uint64_t page = record_address(records[i]) >> 12;
        uint64_t *known = &last[kind != VTX_FETCH][page & 15];
        kinds[kind]++;
        if (*known != page) {
            *known = page;
            misses++;
        }
    }
    return misses;
}

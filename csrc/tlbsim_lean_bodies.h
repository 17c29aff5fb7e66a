/* Lookups in a lean geometry, for one kind of processor: tlbsim_lean.c includes this once for each,
 * with TARGET (attributes of its functions), NAMED (their names) and TOUCH (LRU over one set). */

/* What missed the first level. */
TARGET INLINE void NAMED(two)(vtx_sim *sim, uint64_t record, unsigned ways2) {
    const uint32_t kind = record_kind(record);
    const unsigned side = kind != VTX_FETCH;
    const sim_lean *lean = &sim->lean[side];
    const uint64_t page = record << 16 >> 28;
    lean->slots[0]->misses[kind]++;
    uint32_t *set = lean->tags[1] + (page & lean->set_mask[1]) * ways2;
    if (TOUCH(set, (uint32_t)(page >> lean->tag_shift[1]), ways2)) {
        lean->slots[1]->hits[kind]++;
        return;
    }
    lean->slots[1]->misses[kind]++;
    sim_missed(sim, side, kind, record_address(record));
}

TARGET INLINE void NAMED(look_up)(vtx_sim *sim, uint64_t record, unsigned ways1, unsigned ways2) {
    const sim_lean *lean = &sim->lean[record_kind(record) != VTX_FETCH];
    const uint64_t page = record << 16 >> 28;
    uint32_t *set = lean->tags[0] + (page & lean->set_mask[0]) * ways1;
    if (!TOUCH(set, (uint32_t)(page >> lean->tag_shift[0]), ways1))
        NAMED(two)(sim, record, ways2);
}

TARGET INLINE void NAMED(one)(vtx_sim *sim, uint64_t record, unsigned ways1, unsigned ways2) {
    const uint64_t address = record_address(record);
    const unsigned side = record_kind(record) != VTX_FETCH;
    if (sim_widens(address)) {
        sim_look_up(sim, side, record_kind(record), address);
        return;
    }
    front_note(&sim->front, sim->mode == SIM_TOGETHER ? 0 : side, address, 1);
    NAMED(look_up)(sim, record, ways1, ways2);
}

TARGET INLINE unsigned NAMED(all)(vtx_sim *sim, const uint64_t *records, unsigned count,
                                  unsigned ways1, unsigned ways2) {
    unsigned first = 0; /* records that are not the last used page of their set */
    for (unsigned i = 0; i < count; i++) {
        const uint64_t record = records[i];
        const sim_lean *lean = &sim->lean[record_kind(record) != VTX_FETCH];
        const uint64_t page = record << 16 >> 28;
        if (record_reaches(record) || sim_widens(record_address(record))) {
            if (may_widen(record))
                return i;
            sim_refer(sim, record);
            continue;
        }
        const uint32_t *set1 = lean->tags[0] + (page & lean->set_mask[0]) * ways1;
        if (*set1 == (uint32_t)(page >> lean->tag_shift[0]))
            continue;
        first++;
        NAMED(look_up)(sim, record, ways1, ways2);
    }
    sim->dense = first * SIM_DENSE_SHARE > count;
    return count;
}

#define TWO(WAYS2)                                                                                 \
    TARGET NOINLINE static void NAMED(two_##WAYS2)(vtx_sim * sim, uint64_t record) {               \
        NAMED(two)(sim, record, WAYS2);                                                            \
    }

TWO(4)
TWO(8)
TWO(12)
TWO(16)
#undef TWO

#define LEAN(WAYS1, WAYS2)                                                                         \
    TARGET NOINLINE static void NAMED(one_##WAYS1##_##WAYS2)(vtx_sim * sim, uint64_t record) {     \
        NAMED(one)(sim, record, WAYS1, WAYS2);                                                     \
    }                                                                                              \
    TARGET NOINLINE static unsigned NAMED(all_##WAYS1##_##WAYS2)(                                  \
        vtx_sim * sim, const uint64_t *records, unsigned count) {                                  \
        return NAMED(all)(sim, records, count, WAYS1, WAYS2);                                      \
    }

LEAN(4, 4)
LEAN(4, 8)
LEAN(4, 12)
LEAN(4, 16)
LEAN(8, 4)
LEAN(8, 8)
LEAN(8, 12)
LEAN(8, 16)
#undef LEAN

#define BOTH(WAYS1, WAYS2)                                                                         \
    { NAMED(two_##WAYS2), NAMED(one_##WAYS1##_##WAYS2), NAMED(all_##WAYS1##_##WAYS2) }

static const lean_bodies NAMED(bodies)[2][4] = {
    {BOTH(4, 4), BOTH(4, 8), BOTH(4, 12), BOTH(4, 16)},
    {BOTH(8, 4), BOTH(8, 8), BOTH(8, 12), BOTH(8, 16)},
};
#undef BOTH

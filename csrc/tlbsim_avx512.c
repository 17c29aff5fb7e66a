/* The loop over records for x86 processors with AVX-512 (F, BW, VL): as in tlbsim_avx2.c, but sixteen
 * records at once, one register for a side of the front, and masks in place of sign bits. */
#include "tlbsim_avx512.h"

#if defined(SIM_AVX512)

/* Sixteen records as vectors of 32 bits. */
typedef struct {
    __m512i tag;   /* bits 16 to 47 */
    __m512i class; /* bits 12 to 15, and others above them */
    __mmask16 data, special;
} group;

/* Where the loop is: the front in registers, a group, and which records of it it does not pass. */
typedef struct {
    __m512i sides[2];
    group g;
    unsigned stopping;
} place;

/* Special: reaches beyond its page, has no bytes, or a tag that means none. */
SIM_AVX512 INLINE group load_group(const uint64_t *records) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512i a = _mm512_loadu_si512(records);
    const __m512i b = _mm512_loadu_si512(records + 8);
    const __m512i low = _mm512_permutex2var_epi32(a, even, b);
    const __m512i high = _mm512_permutex2var_epi32(a, odd, b);
    const __m512i upper = _mm512_srli_epi32(high, 16);
    const __m512i bytes = _mm512_and_si512(upper, _mm512_set1_epi32(0x3FFF));
    const __m512i offset = _mm512_and_si512(low, _mm512_set1_epi32(0xFFF));
    const __m512i end = _mm512_add_epi32(offset, bytes);
    const __m512i last = _mm512_sub_epi32(end, _mm512_set1_epi32(1));
    group g;
    g.tag = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(low, 16),
                                    _mm512_slli_epi32(high, 16));
    g.class = _mm512_srli_epi32(low, 12);
    g.data = _mm512_cmpgt_epu32_mask(high, _mm512_set1_epi32(0x3FFFFFFF));
    g.special = (__mmask16)(_mm512_cmpgt_epu32_mask(last, _mm512_set1_epi32(0xFFF)) |
                            _mm512_cmpeq_epi32_mask(g.tag, _mm512_set1_epi32(-1)));
    return g;
}

/* Bit n: the stream's record n is of use. */
SIM_AVX512 INLINE unsigned used(const group *g, enum sim_mode mode) {
    if (mode == SIM_FETCHES)
        return g->data ^ 0xFFFFu;
    return mode == SIM_DATA ? g->data : 0xFFFFu;
}

SIM_AVX512 INLINE unsigned stops(const place *at, enum sim_mode mode) {
    const group *g = &at->g;
    __m512i tags = _mm512_permutexvar_epi32(g->class, at->sides[mode == SIM_DATA]);
    if (mode == SIM_SPLIT)
        tags = _mm512_mask_permutexvar_epi32(tags, g->data, g->class, at->sides[1]);
    return (_mm512_cmpneq_epi32_mask(tags, g->tag) | (unsigned)g->special) & used(g, mode);
}

/* ---- One record that is not passed ---------------------------------------------------------- */

/* `refer`, which may do anything to the front. */
SIM_AVX512 INLINE void refer(vtx_sim *sim, place *at, uint64_t record, enum sim_mode mode) {
    sim_front *front = &sim->front;
    for (unsigned side = 0; side < 2; side++)
        _mm512_storeu_si512(front->tags[side], at->sides[side]);
    sim_refer(sim, record);
    for (unsigned side = 0; side < 2; side++)
        at->sides[side] = _mm512_loadu_si512(front->tags[side]);
    at->stopping = stops(at, mode);
}

/* The same for a record that is not special, in a lean geometry: of the records that follow in the
 * group, it concerns those that share sets with it. No branch on the side. */
SIM_AVX512 INLINE void refer_lean(vtx_sim *sim, place *at, uint64_t record, enum sim_mode mode,
                                  unsigned ways) {
    const unsigned data = record_kind(record) != VTX_FETCH;
    const unsigned side = mode == SIM_SPLIT ? data : mode == SIM_DATA;
    const sim_lean *lean = &sim->lean[data];
    const uint64_t page = record << 16 >> 28;
    const unsigned class = page % SIM_CLASSES;
    const __m512i tag = _mm512_set1_epi32((int32_t)(page >> 4));
    const __m512i differ = _mm512_xor_si512(at->g.class, _mm512_set1_epi32((int32_t)page));
    const __m512i step = _mm512_set1_epi32(sim->front.step[side] - 1);
    unsigned shared = _mm512_testn_epi32_mask(differ, step);
    if (mode == SIM_SPLIT)
        shared &= at->g.data ^ (data - 1);
    const unsigned same = _mm512_testn_epi32_mask(differ, _mm512_set1_epi32(15)) &
                          _mm512_cmpeq_epi32_mask(at->g.tag, tag) & ~(unsigned)at->g.special;
    at->stopping = (at->stopping & ~shared) | (shared & ~same & used(&at->g, mode));
    const uint32_t forgotten = sim->front.sharing[side][class];
    for (unsigned of = 0; of < 2; of++) {
        const unsigned here = 0u - (side == of);
        const __m512i tags = _mm512_mask_mov_epi32(at->sides[of], (__mmask16)(forgotten & here),
                                                   _mm512_set1_epi32(-1));
        at->sides[of] = _mm512_mask_mov_epi32(tags, (__mmask16)(1u << class & here), tag);
    }
    uint32_t *set = lean->tags[0] + (page & lean->set_mask[0]) * ways;
    if (!lru_avx512(set, (uint32_t)(page >> lean->tag_shift[0]), ways))
        sim->lean_two(sim, record);
}

/* ---- The loop ------------------------------------------------------------------------------- */

/* ways: of the first level of a lean geometry (which it may cease to be); else 0. */
SIM_AVX512 INLINE unsigned loop_groups(vtx_sim *sim, const uint64_t *records, unsigned count,
                                       enum sim_mode mode, unsigned ways) {
    sim_front *front = &sim->front;
    place at;
    for (unsigned side = 0; side < 2; side++)
        at.sides[side] = _mm512_loadu_si512(front->tags[side]);
    unsigned referred = 0;
    for (unsigned i = 0; i < count; i += 16) {
        at.g = load_group(records + i);
        at.stopping = stops(&at, mode);
        while (at.stopping) {
            const unsigned first = (unsigned)__builtin_ctz(at.stopping);
            if (!ways || at.g.special >> first & 1 || !sim->lean_one)
                refer(sim, &at, records[i + first], mode);
            else
                refer_lean(sim, &at, records[i + first], mode, ways);
            at.stopping &= 0xFFFEu << first;
            referred++;
        }
    }
    for (unsigned side = 0; side < 2; side++)
        _mm512_storeu_si512(front->tags[side], at.sides[side]);
    return referred;
}

SIM_AVX512 INLINE unsigned loop(vtx_sim *sim, const uint64_t *records, unsigned count,
                                enum sim_mode mode) {
    const unsigned whole = count & ~15u;
    unsigned referred = 0;
    if (!sim->lean_one || sim->twice)
        referred = loop_groups(sim, records, whole, mode, 0);
    else if (sim->lean[mode != SIM_FETCHES].ways == 4)
        referred = loop_groups(sim, records, whole, mode, 4);
    else
        referred = loop_groups(sim, records, whole, mode, 8);
    if (whole < count)
        referred += sim_loop_portable(sim)(sim, records + whole, count - whole);
    return referred;
}

#define LOOP(NAME, MODE)                                                                           \
    SIM_AVX512 static unsigned NAME(vtx_sim *sim, const uint64_t *records, unsigned count) {       \
        return loop(sim, records, count, MODE);                                                    \
    }

LOOP(loop_split, SIM_SPLIT)
LOOP(loop_together, SIM_TOGETHER)
LOOP(loop_fetches, SIM_FETCHES)
LOOP(loop_data, SIM_DATA)

sim_loop *sim_loop_avx512(const vtx_sim *sim) {
    switch ((enum sim_mode)sim->mode) {
    case SIM_TOGETHER: return loop_together;
    case SIM_FETCHES: return loop_fetches;
    case SIM_DATA: return loop_data;
    default: return loop_split;
    }
}

#endif

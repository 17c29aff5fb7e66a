/* The loop over records for x86 processors with AVX2: eight of them at once against the front, which
 * stays in registers. */
#include "tlbsim_avx2.h"

#if defined(SIM_AVX2)

/* Eight records as vectors of 32 bits. */
typedef struct {
    __m256i low, high; /* their halves */
    __m256i tag;       /* bits 16 to 47 */
    __m256i class;     /* bits 12 to 15 */
    __m256i data;      /* bit 31: no fetch */
} group;

/* One side of the front, by bits 0 to 2 of the class, and by bit 3. */
typedef struct {
    __m256i low, high;
} side_tags;

SIM_AVX2 INLINE __m256i two_halves(const uint64_t *records) {
    const __m128i low = _mm_loadu_si128((const __m128i *)records);
    const __m128i high = _mm_loadu_si128((const __m128i *)(records + 4));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* From records 0, 1, 4, 5 and 2, 3, 6, 7 their low halves, or their high ones, in order. */
#define EVEN(A, B)                                                                                 \
    _mm256_castps_si256(                                                                           \
        _mm256_shuffle_ps(_mm256_castsi256_ps(A), _mm256_castsi256_ps(B), 0x88))
#define ODD(A, B)                                                                                  \
    _mm256_castps_si256(                                                                           \
        _mm256_shuffle_ps(_mm256_castsi256_ps(A), _mm256_castsi256_ps(B), 0xDD))

SIM_AVX2 INLINE group load_group(const uint64_t *records) {
    const __m256i a = two_halves(records), b = two_halves(records + 2);
    group g;
    g.low = EVEN(a, b);
    g.high = ODD(a, b);
    g.tag = _mm256_blend_epi16(_mm256_srli_epi32(g.low, 16), _mm256_slli_epi32(g.high, 16), 0xAA);
    g.class = _mm256_and_si256(_mm256_srli_epi32(g.low, 12), _mm256_set1_epi32(15));
    g.data = _mm256_or_si256(g.high, _mm256_add_epi32(g.high, g.high));
    return g;
}

SIM_AVX2 INLINE side_tags load_side(const uint32_t tags[SIM_CLASSES]) {
    return (side_tags){_mm256_loadu_si256((const __m256i *)tags),
                       _mm256_loadu_si256((const __m256i *)(tags + 8))};
}

SIM_AVX2 INLINE void store_side(uint32_t tags[SIM_CLASSES], side_tags side) {
    _mm256_storeu_si256((__m256i *)tags, side.low);
    _mm256_storeu_si256((__m256i *)(tags + 8), side.high);
}

/* By bit 31 of `which`. */
SIM_AVX2 INLINE __m256i choose(__m256i no, __m256i yes, __m256i which) {
    return _mm256_castps_si256(_mm256_blendv_ps(
        _mm256_castsi256_ps(no), _mm256_castsi256_ps(yes), _mm256_castsi256_ps(which)));
}

SIM_AVX2 INLINE __m256i known(side_tags side, __m256i class) {
    return choose(_mm256_permutevar8x32_epi32(side.low, class),
                  _mm256_permutevar8x32_epi32(side.high, class), _mm256_slli_epi32(class, 28));
}

SIM_AVX2 INLINE unsigned bits_31(__m256i v) {
    return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(v));
}

/* Bit n: record n reaches beyond its page, has no bytes, or a tag that means none. */
SIM_AVX2 INLINE unsigned special(group g) {
    const __m256i ones = _mm256_set1_epi32(-1);
    const __m256i none = _mm256_cmpeq_epi32(g.tag, ones);
    const __m256i bytes =
        _mm256_and_si256(_mm256_srli_epi32(g.high, 16), _mm256_set1_epi32(0x3FFF));
    const __m256i offset = _mm256_and_si256(g.low, _mm256_set1_epi32(0xFFF));
    const __m256i last = _mm256_add_epi32(_mm256_add_epi32(offset, bytes), ones);
    /* Bit 31 of `last` is set if there are no bytes, and of 4095 - last if it lies beyond. */
    const __m256i beyond = _mm256_sub_epi32(_mm256_set1_epi32(0xFFF), last);
    return bits_31(_mm256_or_si256(_mm256_or_si256(none, last), beyond));
}

/* Bit n: record n is not in the page that the front knows. */
SIM_AVX2 INLINE unsigned elsewhere(group g, const side_tags sides[2], enum sim_mode mode) {
    __m256i tags = known(sides[mode == SIM_DATA], g.class);
    if (mode == SIM_SPLIT)
        tags = choose(tags, known(sides[1], g.class), g.data);
    return bits_31(_mm256_cmpeq_epi32(tags, g.tag)) ^ 0xFF;
}

/* Bit n: the stream's record n is of use. */
SIM_AVX2 INLINE unsigned used(group g, enum sim_mode mode) {
    if (mode == SIM_FETCHES)
        return bits_31(g.data) ^ 0xFF;
    return mode == SIM_DATA ? bits_31(g.data) : 0xFF;
}

/* ---- One record that is not passed ---------------------------------------------------------- */

/* Where the loop is: the front in registers, a group, and which records of it it does not pass. */
typedef struct {
    side_tags sides[2];
    group g;
    unsigned special, stopping;
} place;

/* `refer`, which may do anything to the front. */
SIM_AVX2 INLINE void refer(vtx_sim *sim, place *at, uint64_t record, enum sim_mode mode) {
    sim_front *front = &sim->front;
    for (unsigned side = 0; side < 2; side++)
        store_side(front->tags[side], at->sides[side]);
    sim_refer(sim, record);
    for (unsigned side = 0; side < 2; side++)
        at->sides[side] = load_side(front->tags[side]);
    at->stopping = (elsewhere(at->g, at->sides, mode) | at->special) & used(at->g, mode);
}

SIM_AVX2 INLINE side_tags note(side_tags tags, __m256i tag, __m256i class, __m256i step) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i shared = _mm256_and_si256(class, step);
    const __m256i forget_low = _mm256_cmpeq_epi32(_mm256_and_si256(low, step), shared);
    const __m256i forget_high = _mm256_cmpeq_epi32(_mm256_and_si256(high, step), shared);
    tags.low = _mm256_or_si256(tags.low, forget_low);
    tags.high = _mm256_or_si256(tags.high, forget_high);
    tags.low = _mm256_blendv_epi8(tags.low, tag, _mm256_cmpeq_epi32(low, class));
    tags.high = _mm256_blendv_epi8(tags.high, tag, _mm256_cmpeq_epi32(high, class));
    return tags;
}

/* The same for a record that is not special, in a lean geometry: of the records that follow in the
 * group, it concerns those that share sets with it. */
SIM_AVX2 INLINE void refer_lean(vtx_sim *sim, place *at, uint64_t record, enum sim_mode mode,
                                unsigned ways) {
    const unsigned data = record_kind(record) != VTX_FETCH;
    const unsigned side = mode == SIM_SPLIT ? data : mode == SIM_DATA;
    const sim_lean *lean = &sim->lean[data];
    const uint64_t page = record << 16 >> 28;
    const __m256i tag = _mm256_set1_epi32((int32_t)(page >> 4));
    const __m256i class = _mm256_set1_epi32((int32_t)(page % SIM_CLASSES));
    const __m256i step = _mm256_set1_epi32(sim->front.step[side] - 1);
    const __m256i differ = _mm256_xor_si256(at->g.class, class);
    const __m256i zero = _mm256_setzero_si256();
    unsigned shared = bits_31(_mm256_cmpeq_epi32(_mm256_and_si256(differ, step), zero));
    if (mode == SIM_SPLIT)
        shared &= bits_31(at->g.data) ^ (data - 1);
    const __m256i same_tag = _mm256_cmpeq_epi32(at->g.tag, tag);
    const unsigned same =
        bits_31(_mm256_and_si256(_mm256_cmpeq_epi32(differ, zero), same_tag)) & ~at->special;
    at->stopping = (at->stopping & ~shared) | (shared & ~same & used(at->g, mode));
    if (side)
        at->sides[1] = note(at->sides[1], tag, class, step);
    else
        at->sides[0] = note(at->sides[0], tag, class, step);
    uint32_t *set = lean->tags[0] + (page & lean->set_mask[0]) * ways;
    if (!lru_avx2(set, (uint32_t)(page >> lean->tag_shift[0]), ways))
        sim->lean_two(sim, record);
}

/* ---- The loop ------------------------------------------------------------------------------- */

/* ways: of the first level of a lean geometry (which it may cease to be); else 0. */
SIM_AVX2 INLINE unsigned loop_groups(vtx_sim *sim, const uint64_t *records, unsigned count,
                                     enum sim_mode mode, unsigned ways) {
    sim_front *front = &sim->front;
    place at;
    for (unsigned side = 0; side < 2; side++)
        at.sides[side] = load_side(front->tags[side]);
    unsigned referred = 0;
    for (unsigned i = 0; i < count; i += 8) {
        at.g = load_group(records + i);
        at.special = special(at.g);
        at.stopping = (elsewhere(at.g, at.sides, mode) | at.special) & used(at.g, mode);
        while (at.stopping) {
            const unsigned first = (unsigned)__builtin_ctz(at.stopping);
            if (!ways || at.special >> first & 1 || !sim->lean_one)
                refer(sim, &at, records[i + first], mode);
            else
                refer_lean(sim, &at, records[i + first], mode, ways);
            at.stopping &= 0xFEu << first;
            referred++;
        }
    }
    for (unsigned side = 0; side < 2; side++)
        store_side(front->tags[side], at.sides[side]);
    return referred;
}

SIM_AVX2 INLINE unsigned loop(vtx_sim *sim, const uint64_t *records, unsigned count,
                              enum sim_mode mode) {
    const unsigned whole = count & ~7u;
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
    SIM_AVX2 static unsigned NAME(vtx_sim *sim, const uint64_t *records, unsigned count) {         \
        return loop(sim, records, count, MODE);                                                    \
    }

LOOP(loop_split, SIM_SPLIT)
LOOP(loop_together, SIM_TOGETHER)
LOOP(loop_fetches, SIM_FETCHES)
LOOP(loop_data, SIM_DATA)

sim_loop *sim_loop_avx2(const vtx_sim *sim) {
    switch ((enum sim_mode)sim->mode) {
    case SIM_TOGETHER: return loop_together;
    case SIM_FETCHES: return loop_fetches;
    case SIM_DATA: return loop_data;
    default: return loop_split;
    }
}

/* ---- Kinds ---------------------------------------------------------------------------------- */

/* A lane counts four kinds in its bytes, at most 128 times before they are added up. */
enum { COUNTED = 8 * 128 };

SIM_AVX2 static unsigned count_some(const uint64_t *records, unsigned count, uint64_t kinds[4]) {
    const __m256i one = _mm256_set1_epi32(1);
    __m256i counts = _mm256_setzero_si256();
    unsigned i = 0;
    for (; i + 8 <= count && i < COUNTED; i += 8) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(records + i));
        const __m256i b = _mm256_loadu_si256((const __m256i *)(records + i + 4));
        const __m256i kind_by_8 =
            _mm256_and_si256(_mm256_srli_epi32(ODD(a, b), 27), _mm256_set1_epi32(0x18));
        counts = _mm256_add_epi32(counts, _mm256_sllv_epi32(one, kind_by_8));
    }
    uint32_t lanes[8];
    _mm256_storeu_si256((__m256i *)lanes, counts);
    for (unsigned lane = 0; lane < 8; lane++)
        for (unsigned kind = 0; kind < 4; kind++)
            kinds[kind] += lanes[lane] >> 8 * kind & 0xFF;
    return i;
}

SIM_AVX2 void sim_count_kinds_avx2(const uint64_t *records, unsigned count, uint64_t kinds[4]) {
    unsigned i = 0;
    while (i + 8 <= count)
        i += count_some(records + i, count - i, kinds);
    for (; i < count; i++)
        kinds[record_kind(records[i])]++;
}

#endif

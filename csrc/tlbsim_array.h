/* One array of a TLB: lookup and fill in one step, for each replacement.
 *
 * A page that misses is put in at once, because a walk always ends in a translation here; so a
 * lookup and the fill after it are one pass over the set. True LRU is the order of the tags: the
 * page moves to the front, and the rest up to its old place (on a miss: the end) moves back by
 * one. The bodies for usual numbers of ways do that without a branch on what they find. */
#ifndef VTX_TLBSIM_ARRAY_H
#define VTX_TLBSIM_ARRAY_H

#include "tlbsim.h"

#include <string.h>

/* ---- Which set ------------------------------------------------------------------------------ */

/* page % sets by multiplication: exact for page < 2^36 and sets <= 2^24 (Lemire, Kaser and Kurz,
 * "Faster remainder by direct computation", 2019). */
INLINE uint64_t remainder_of(const sim_array *array, uint64_t page) {
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)(array->reciprocal * page) * array->sets >> 64);
#else
    return page % array->sets;
#endif
}

INLINE uint64_t set_of(const sim_array *array, uint64_t page) {
    if (!array->power_of_two)
        return remainder_of(array, page);
    if (array->index == VTX_SIM_XOR)
        page ^= page >> array->tag_shift;
    return page & array->set_mask;
}

INLINE uint64_t tag_of(const sim_array *array, uint64_t page, unsigned size) {
    return (page >> array->tag_shift << array->size_bits) + (array->size_bits ? size : 0);
}

/* ---- True LRU ------------------------------------------------------------------------------- */

/* Every way takes its neighbour's tag until the page has been found. */
#define LRU_BODY(NAME, TYPE, WAYS)                                                                 \
    INLINE int NAME(TYPE *tags, TYPE tag) {                                                        \
        TYPE before = tag;                                                                         \
        int found = 0;                                                                             \
        for (unsigned way = 0; way < (WAYS); way++) {                                              \
            const TYPE here = tags[way];                                                           \
            tags[way] = found ? here : before;                                                     \
            before = here;                                                                         \
            found |= here == tag;                                                                  \
        }                                                                                          \
        return found;                                                                              \
    }

LRU_BODY(lru_1, uint64_t, 1)
LRU_BODY(lru_2, uint64_t, 2)
LRU_BODY(lru_3, uint64_t, 3)
LRU_BODY(lru_4, uint64_t, 4)
LRU_BODY(lru_5, uint64_t, 5)
LRU_BODY(lru_6, uint64_t, 6)
LRU_BODY(lru_8, uint64_t, 8)
LRU_BODY(lru_12, uint64_t, 12)
LRU_BODY(lru_16, uint64_t, 16)

#if defined(__GNUC__)
/* The same over 32-bit tags with the vectors that compilers of the GNU kind have for every
 * processor: which ways to move follows from where the tag was found. */
typedef uint32_t vector __attribute__((vector_size(16)));

INLINE vector load_vector(const uint32_t *from) {
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE int lru_narrow(uint32_t *tags, uint32_t tag, unsigned ways) {
    const vector wanted = {tag, tag, tag, tag};
    vector place = {0, 0, 0, 0}; /* way + 1 where the tag is */
    vector old[4], shifted[4];
    for (unsigned i = 0; i < ways / 4; i++) {
        const uint32_t w = 4 * i + 1;
        const vector ways_here = {w, w + 1, w + 2, w + 3};
        old[i] = load_vector(tags + 4 * i);
        place |= (vector)(old[i] == wanted) & ways_here;
    }
    shifted[0] = (vector){tag, old[0][0], old[0][1], old[0][2]};
    for (unsigned i = 1; i < ways / 4; i++)
        shifted[i] = load_vector(tags + 4 * i - 1);
    const uint32_t found = place[0] | place[1] | place[2] | place[3];
    const int32_t last = (int32_t)(found ? found : ways);
    typedef int32_t ints __attribute__((vector_size(16)));
    const ints end = {last, last, last, last};
    for (unsigned i = 0; i < ways / 4; i++) {
        const int32_t w = (int32_t)(4 * i);
        const ints ways_here = {w, w + 1, w + 2, w + 3};
        const vector moves = (vector)(ways_here < end);
        const vector new_tags = (shifted[i] & moves) | (old[i] & ~moves);
        memcpy(tags + 4 * i, &new_tags, sizeof new_tags);
    }
    return found != 0;
}
#else
INLINE int lru_narrow(uint32_t *tags, uint32_t tag, unsigned ways) {
    uint32_t before = tag;
    int found = 0;
    for (unsigned way = 0; way < ways; way++) {
        const uint32_t here = tags[way];
        tags[way] = found ? here : before;
        before = here;
        found |= here == tag;
    }
    return found;
}
#endif

/* ---- All of them ---------------------------------------------------------------------------- */

#define WIDE(NAME, WAYS)                                                                           \
    return NAME((uint64_t *)array->tags + set * (WAYS), tag)
#define NARROW(WAYS)                                                                               \
    if ((uint32_t)tag == SIM_EMPTY_NARROW)                                                         \
        break;                                                                                     \
    return lru_narrow((uint32_t *)array->tags + set * (WAYS), (uint32_t)tag, WAYS)

INLINE int sim_array_touch(sim_array *array, uint64_t page, unsigned size) {
    const uint64_t set = set_of(array, page);
    const uint64_t tag = tag_of(array, page, size);
    switch ((enum sim_body)array->body) {
    case BODY_LRU_1: WIDE(lru_1, 1);
    case BODY_LRU_2: WIDE(lru_2, 2);
    case BODY_LRU_3: WIDE(lru_3, 3);
    case BODY_LRU_4: WIDE(lru_4, 4);
    case BODY_LRU_5: WIDE(lru_5, 5);
    case BODY_LRU_6: WIDE(lru_6, 6);
    case BODY_LRU_8: WIDE(lru_8, 8);
    case BODY_LRU_12: WIDE(lru_12, 12);
    case BODY_LRU_16: WIDE(lru_16, 16);
    case BODY_LRU_NARROW_4: NARROW(4);
    case BODY_LRU_NARROW_8: NARROW(8);
    case BODY_LRU_NARROW_12: NARROW(12);
    case BODY_LRU_NARROW_16: NARROW(16);
    default: break;
    }
    return sim_array_touch_other(array, set, tag);
}

#undef WIDE
#undef NARROW

#endif

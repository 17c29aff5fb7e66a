/* True LRU over one set of 4, 8, 12 or 16 tags of 32 bits, for x86 processors with AVX2. */
#ifndef VTX_TLBSIM_AVX2_H
#define VTX_TLBSIM_AVX2_H

#include "tlbsim.h"

#if defined(SIM_AVX2)

#include <immintrin.h>

/* From element 15 - p on: all ones for ways 0 to p, then zeros. */
static const int32_t moves[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};

SIM_AVX2 INLINE __m256i load_8(const void *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}

SIM_AVX2 INLINE __m128i load_4(const void *from) {
    return _mm_loadu_si128((const __m128i *)from);
}

SIM_AVX2 INLINE uint32_t equal_8(const uint32_t *tags, __m256i tag) {
    const __m256i equal = _mm256_cmpeq_epi32(load_8(tags), tag);
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(equal));
}

SIM_AVX2 INLINE uint32_t equal_4(const uint32_t *tags, __m128i tag) {
    const __m128i equal = _mm_cmpeq_epi32(load_4(tags), tag);
    return (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(equal));
}

/* 1: the tag was there. Ways 0 to where it was, or all, get their neighbour's tag; way 0 gets it. */
SIM_AVX2 INLINE int lru_avx2(uint32_t *tags, uint32_t tag, unsigned ways) {
    const __m256i tag8 = _mm256_set1_epi32((int32_t)tag);
    const __m128i tag4 = _mm256_castsi256_si128(tag8);
    uint32_t found = 0;
    for (unsigned i = 0; i + 8 <= ways; i += 8)
        found |= equal_8(tags + i, tag8) << i;
    if (ways % 8)
        found |= equal_4(tags + ways - 4, tag4) << (ways - 4);
    const int32_t *move = moves + 15 - __builtin_ctz(found | 1u << (ways - 1));
    if (ways == 4) {
        const __m128i old = load_4(tags);
        const __m128i moved = _mm_alignr_epi8(old, tag4, 12);
        _mm_storeu_si128((__m128i *)tags, _mm_blendv_epi8(old, moved, load_4(move)));
        return found != 0;
    }
    const __m256i back = _mm256_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6);
    const __m256i old = load_8(tags);
    const __m256i moved = _mm256_blend_epi32(_mm256_permutevar8x32_epi32(old, back), tag8, 1);
    const __m256i first = _mm256_blendv_epi8(old, moved, load_8(move));
    if (ways == 12) {
        const __m128i rest =
            _mm_blendv_epi8(load_4(tags + 8), load_4(tags + 7), load_4(move + 8));
        _mm_storeu_si128((__m128i *)(tags + 8), rest);
    } else if (ways == 16) {
        const __m256i rest =
            _mm256_blendv_epi8(load_8(tags + 8), load_8(tags + 7), load_8(move + 8));
        _mm256_storeu_si256((__m256i *)(tags + 8), rest);
    }
    _mm256_storeu_si256((__m256i *)tags, first);
    return found != 0;
}

#endif

#endif

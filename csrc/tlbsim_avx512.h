/* True LRU over one set of 4, 8, 12 or 16 tags of 32 bits, for x86 processors with AVX-512. */
#ifndef VTX_TLBSIM_AVX512_H
#define VTX_TLBSIM_AVX512_H

#include "tlbsim.h"

#if defined(SIM_AVX512)

#include <immintrin.h>

/* 1: the tag was there. Ways 0 to where it was, or all, get their neighbour's tag; way 0 gets it. */
SIM_AVX512 INLINE int lru_avx512_4(uint32_t *tags, uint32_t tag) {
    const __m128i wanted = _mm_set1_epi32((int32_t)tag);
    const __m128i old = _mm_loadu_si128((const __m128i *)tags);
    const unsigned found = _mm_cmpeq_epi32_mask(old, wanted);
    const __m128i moved = _mm_alignr_epi32(old, wanted, 3);
    const __m128i set = _mm_mask_mov_epi32(old, (__mmask8)(found ^ (found - 1)), moved);
    _mm_storeu_si128((__m128i *)tags, set);
    return found != 0;
}

/* Ways 0 to 7 and the rest: of those no more than 8, the first of which takes the tag of way 7. */
SIM_AVX512 INLINE int lru_avx512(uint32_t *tags, uint32_t tag, unsigned ways) {
    if (ways == 4)
        return lru_avx512_4(tags, tag);
    const __m256i wanted = _mm256_set1_epi32((int32_t)tag);
    const __m256i old = _mm256_loadu_si256((const __m256i *)tags);
    unsigned found = _mm256_cmpeq_epi32_mask(old, wanted);
    __m256i rest = wanted;
    if (ways == 12)
        rest = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(tags + 8)));
    if (ways == 16)
        rest = _mm256_loadu_si256((const __m256i *)(tags + 8));
    if (ways > 8)
        found |= (unsigned)_mm256_mask_cmpeq_epi32_mask((__mmask8)((1u << (ways - 8)) - 1), rest,
                                                        wanted)
                 << 8;
    const unsigned moving = found ^ (found - 1);
    const __m256i moved = _mm256_alignr_epi32(old, wanted, 7);
    _mm256_storeu_si256((__m256i *)tags, _mm256_mask_mov_epi32(old, (__mmask8)moving, moved));
    if (ways > 8) {
        const __m256i back = _mm256_alignr_epi32(rest, old, 7);
        rest = _mm256_mask_mov_epi32(rest, (__mmask8)(moving >> 8), back);
    }
    if (ways == 12)
        _mm_storeu_si128((__m128i *)(tags + 8), _mm256_castsi256_si128(rest));
    if (ways == 16)
        _mm256_storeu_si256((__m256i *)(tags + 8), rest);
    return found != 0;
}

#endif

#endif

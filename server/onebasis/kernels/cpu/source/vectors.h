// Vectors of 16 floats and 32 bfloat16 numbers (AVX-512 with BF16).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>

using bf16 = uint16_t;  // the upper half of a float32

constexpr int kLanes = 16;  // floats in a vector

inline __m512bh load_pairs(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }

// The pair of neighbours at p, 16 times.
inline __m512bh broadcast_pair(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

inline bf16 to_bf16(float value) {
    const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(value));
    return static_cast<bf16>(_mm_extract_epi16((__m128i)rounded, 0));
}

inline void store_bf16(bf16* p, __m512 values) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(values)); }

// 16 bfloat16 numbers as floats.
inline __m512 widened(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>(n < kLanes ? (1u << n) - 1 : 0xffffu); }

// Place of the highest number, the first of equal ones; of the first NaN where there is one. n > 0.
inline int argmax(const float* x, int n) {
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512 highest = lowest;
    __mmask16 has_nan = 0;
    for (int i = 0; i < n; i += kLanes) {
        const __m512 part = _mm512_mask_loadu_ps(lowest, first_lanes(n - i), x + i);
        highest = _mm512_max_ps(highest, part);
        has_nan |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
    }
    const __m512 wanted = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
    for (int i = 0; i < n; i += kLanes) {
        const __mmask16 lanes = first_lanes(n - i);
        const __m512 part = _mm512_maskz_loadu_ps(lanes, x + i);
        const __mmask16 found = has_nan ? _mm512_mask_cmp_ps_mask(lanes, part, part, _CMP_UNORD_Q)
                                        : _mm512_mask_cmp_ps_mask(lanes, part, wanted, _CMP_EQ_OQ);
        if (found) return i + __builtin_ctz(found);
    }
    return 0;
}

// e^x for x <= 0 to a relative error below 3e-7; 0 below -87. Range reduction to [-ln2/2, ln2/2] and Taylor's polynomial.
inline __m512 exp_negative(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 720);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 120));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 24));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 6));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(tiny, _mm512_scalef_ps(y, n), _mm512_setzero_ps());
}

// x * sigmoid(x)
inline __m512 silu(__m512 x) {
    const __m512 e = exp_negative(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    const __m512 one = _mm512_set1_ps(1.0f);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mul_ps(x, _mm512_mask_blend_ps(negative, one, e)), _mm512_add_ps(one, e));
}

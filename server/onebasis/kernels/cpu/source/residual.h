// The private low-rank update that some tasks have beside the basis: y += B (A x), for the tokens of such a task alone.
//
// A token's numbers are one chain of additions in the order of its input and then of the rank: no other token of the
// step changes them.
#pragma once

#include <algorithm>

#include "vectors.h"

constexpr int kMostSites = 3;  // of a group: q, k and v

// At one site of one task.
struct Residual {
    const bf16* a;  // [rank][d_in]
    const bf16* b;  // [rank][d_out]
    int32_t rank;   // 0: none here
    int32_t d_in, d_out;
};

struct Residuals {
    const Residual* const* tables;  // [n_tokens] by the number of the site, or null where a token has none; null: no
                                    // token of the step has one
    float* low;                     // [n_tokens][kMostSites][max_rank], scratch
    int32_t max_rank;

    float* low_of(int token, int site) const { return low + (int64_t{token} * kMostSites + site) * max_rank; }
};

// low = A x
static void shrink(const Residual& residual, const bf16* x, float* low) {
    for (int j = 0; j < residual.rank; ++j) {
        const bf16* row = residual.a + int64_t{j} * residual.d_in;
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < residual.d_in; i += 2 * kLanes) {
            const int n = std::min(2 * kLanes, residual.d_in - i);
            const __mmask32 mask = n == 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
            const __m512bh left = (__m512bh)_mm512_maskz_loadu_epi16(mask, row + i);
            sum = _mm512_dpbf16_ps(sum, left, (__m512bh)_mm512_maskz_loadu_epi16(mask, x + i));
        }
        low[j] = _mm512_reduce_add_ps(sum);
    }
}

// sums += B low at the 16 columns from `column` on; those past the site's end stay as they are.
static void add_expanded(const Residual& residual, int column, const float* low, float* sums) {
    const int n = std::min(kLanes, residual.d_out - column);
    if (n <= 0) return;
    const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
    __m512 total = _mm512_loadu_ps(sums);
    for (int j = 0; j < residual.rank; ++j) {
        const bf16* row = residual.b + int64_t{j} * residual.d_out + column;
        total = _mm512_fmadd_ps(_mm512_set1_ps(low[j]), widened(_mm256_maskz_loadu_epi16(mask, row)), total);
    }
    _mm512_storeu_ps(sums, total);
}

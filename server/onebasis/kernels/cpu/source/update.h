// y += U^T S_t (V x) beside a layer that something else has computed: bfloat16 in and out, float32 between.
//
// Factors are in plain layouts, V [n_sites * k_in][d_in] and U [n_sites * k_out][width]; of U each site's rows have
// numbers in its own columns alone. Tokens of the base cost one comparison.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "vectors.h"

// See cpu/library.py for who fills this in.
struct LayerUpdate {
    int32_t n_tokens, d_in, n_sites, k_in, k_out;
    int64_t x_stride, y_stride, u_stride;
    const bf16* x;          // [n_tokens][d_in]
    bf16* y;                // [n_tokens][width]
    const bf16* v;
    const bf16* u;
    const int32_t* columns; // [n_sites][2] where each site's columns begin and end
    const float* cores;     // [n_rows][n_sites][k_out][k_in], by the strides below
    int64_t row_stride, site_stride, out_stride;
    const int64_t* rows;    // [n_tokens]
    int64_t base_row;
};

namespace update {

constexpr int kTile = 8;  // tokens that share each load of V and U
constexpr int kBlock = 4;  // tokens and rows of V whose sums are in registers together

// z[i][j] = V[j] . x[token i], for the tokens of a tile.
template <int Tokens, int Factors>
static void project_block(const bf16* const* x, const bf16* v, int d_in, float* z, int z_width) {
    __m512 sum[Tokens][Factors];
    for (int i = 0; i < Tokens; ++i)
        for (int j = 0; j < Factors; ++j) sum[i][j] = _mm512_setzero_ps();
    for (int c = 0; c < d_in; c += 2 * kLanes) {
        const int n = d_in - c;
        const __mmask32 mask = n >= 2 * kLanes ? 0xffffffffu : (1u << n) - 1;
        __m512bh columns[Factors];
#pragma GCC unroll 4
        for (int j = 0; j < Factors; ++j)
            columns[j] = (__m512bh)_mm512_maskz_loadu_epi16(mask, v + int64_t{j} * d_in + c);
#pragma GCC unroll 4
        for (int i = 0; i < Tokens; ++i) {
            const __m512bh numbers = (__m512bh)_mm512_maskz_loadu_epi16(mask, x[i] + c);
#pragma GCC unroll 4
            for (int j = 0; j < Factors; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], numbers, columns[j]);
        }
    }
    for (int i = 0; i < Tokens; ++i)
        for (int j = 0; j < Factors; ++j) z[i * z_width + j] = _mm512_reduce_add_ps(sum[i][j]);
}

template <int Tokens>
static void project_tokens(const bf16* const* x, const bf16* v, int n_factors, int d_in, float* z) {
    int j = 0;
    for (; j + kBlock <= n_factors; j += kBlock)
        project_block<Tokens, kBlock>(x, v + int64_t{j} * d_in, d_in, z + j, n_factors);
    for (; j < n_factors; ++j) project_block<Tokens, 1>(x, v + int64_t{j} * d_in, d_in, z + j, n_factors);
}

static void project(const LayerUpdate& layer, const bf16* const* x, int n, float* z) {
    const int n_factors = layer.n_sites * layer.k_in;
    int i = 0;
    for (; i + kBlock <= n; i += kBlock) project_tokens<kBlock>(x + i, layer.v, n_factors, layer.d_in, z + i * n_factors);
    for (; i < n; ++i) project_tokens<1>(x + i, layer.v, n_factors, layer.d_in, z + i * n_factors);
}

// mixed[site][o] = core[o] . z[site] of one token.
static void mix(const LayerUpdate& layer, int64_t row, const float* z, float* mixed) {
    for (int s = 0; s < layer.n_sites; ++s) {
        const float* core = layer.cores + row * layer.row_stride + s * layer.site_stride;
        for (int o = 0; o < layer.k_out; ++o) {
            const float* numbers = core + o * layer.out_stride;
            __m512 sum = _mm512_setzero_ps();
            for (int j = 0; j < layer.k_in; j += kLanes) {
                const __mmask16 mask = first_lanes(layer.k_in - j);
                sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, numbers + j),
                                      _mm512_maskz_loadu_ps(mask, z + s * layer.k_in + j), sum);
            }
            mixed[s * layer.k_out + o] = _mm512_reduce_add_ps(sum);
        }
    }
}

// 16 columns of y, from `column` on, of the tokens of a tile.
template <int Tokens>
static void expand_columns(const LayerUpdate& layer, int site, int column, __mmask16 mask, bf16* const* y,
                           const float* mixed, int mixed_width) {
    __m512 sum[Tokens];
#pragma GCC unroll 8
    for (int i = 0; i < Tokens; ++i)
        sum[i] = widened(_mm256_maskz_loadu_epi16(mask, y[i] + column));
    for (int o = 0; o < layer.k_out; ++o) {
        const int row = site * layer.k_out + o;
        const __m512 numbers = widened(_mm256_maskz_loadu_epi16(mask, layer.u + row * layer.u_stride + column));
#pragma GCC unroll 8
        for (int i = 0; i < Tokens; ++i)
            sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(mixed[i * mixed_width + row]), numbers, sum[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Tokens; ++i)
        _mm256_mask_storeu_epi16(y[i] + column, mask, (__m256i)_mm512_cvtneps_pbh(sum[i]));
}

static void expand(const LayerUpdate& layer, bf16* const* y, const float* mixed, int n) {
    const int width = layer.n_sites * layer.k_out;
    for (int s = 0; s < layer.n_sites; ++s)
        for (int c = layer.columns[2 * s]; c < layer.columns[2 * s + 1]; c += kLanes) {
            const __mmask16 mask = first_lanes(layer.columns[2 * s + 1] - c);
            int i = 0;
            for (; i + kTile <= n; i += kTile) expand_columns<kTile>(layer, s, c, mask, y + i, mixed + i * width, width);
            for (; i + 2 <= n; i += 2) expand_columns<2>(layer, s, c, mask, y + i, mixed + i * width, width);
            for (; i < n; ++i) expand_columns<1>(layer, s, c, mask, y + i, mixed + i * width, width);
        }
}

static void add(const LayerUpdate& layer) {
    if (layer.n_tokens == 0) return;
    const int n_threads = omp_get_max_threads();
    const int size = std::min(kTile, (layer.n_tokens + n_threads - 1) / n_threads);
    const int n_tiles = (layer.n_tokens + size - 1) / size;
#pragma omp parallel if (n_tiles > 1)
    {
        std::vector<float> z(kTile * layer.n_sites * layer.k_in), mixed(kTile * layer.n_sites * layer.k_out);
#pragma omp for schedule(dynamic)
        for (int tile = 0; tile < n_tiles; ++tile) {
            const bf16* x[kTile];
            bf16* y[kTile];
            int64_t rows[kTile];
            int n = 0;
            for (int t = tile * size; t < std::min((tile + 1) * size, layer.n_tokens); ++t) {
                if (layer.rows[t] == layer.base_row) continue;
                x[n] = layer.x + t * layer.x_stride;
                y[n] = layer.y + t * layer.y_stride;
                rows[n++] = layer.rows[t];
            }
            project(layer, x, n, z.data());
            for (int i = 0; i < n; ++i)
                mix(layer, rows[i], z.data() + i * layer.n_sites * layer.k_in, mixed.data() + i * layer.n_sites * layer.k_out);
            expand(layer, y, mixed.data(), n);
        }
    }
}

}  // namespace update

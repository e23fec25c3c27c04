// y = W x + U^T S_t (V x) for a group of linear layers that read the same input, over tokens of many tasks.
//
// W and V are packed in panels of 32 columns, so that one pass over a panel serves every token. The update is the
// tail of the same sum: mixed = S_t (V x) is one more piece of x, U one more piece of the panel. Each number of y is
// one chain of additions in an order that no other token changes: a token's result does not depend on its batch.
#pragma once

#include <algorithm>
#include <cmath>

#include "residual.h"
#include "vectors.h"

constexpr int kPanel = 2 * kLanes;  // columns of a panel
constexpr int64_t kAhead = 2048;    // numbers: how far ahead the panel is fetched from memory
constexpr int kTileRows = 14;       // 28 accumulators, two vectors of the panel and one of x: 31 registers

// One adapted layer of a group. Offsets count numbers: into a token's z and mixed, and into a row of the cores.
struct Site {
    int32_t k_in, k_out;
    int32_t z_offset, mixed_offset;
    int64_t core_offset;
    int32_t number;  // among all sites of the model
};

// See cpu/library.py for who fills this in.
struct Group {
    int32_t n_in;                // even
    int32_t n_panels;            // of W
    int32_t n_v_panels;          // of V, 0 without sites
    int32_t n_sites;
    int32_t mixed_width;         // numbers of a token's mixed, even
    const bf16* weight;          // [n_panels + n_v_panels][n_in / 2][32][2]
    const float* bias;           // [n_panels * 32] or null
    const bf16* u;               // half panels, each [k_out / 2 rounded up][16][2]
    const int64_t* u_offsets;    // [n_panels * 2] where a half panel's u begins
    const int32_t* half_sites;   // [n_panels * 2] the site that a half panel belongs to, or -1
    const int32_t* half_columns; // [n_panels * 2] the half panel's first column there
    const Site* sites;           // [n_sites]
};

// Whose cores each token takes. rows: [n_tokens], -1 for the base alone.
struct Tasks {
    const int32_t* rows;  // null: no token of the step has a task
    const float* cores;
    int64_t row_stride;
    Residuals residuals;
};

struct Update {
    const bf16* mixed[2];  // first token's numbers for each half
    const bf16* u[2];
    int32_t n_pairs[2];
    int64_t stride;
};

template <int Rows>
static void multiply_tile(const bf16* x, int64_t stride, int n_pairs, const bf16* panel, const bf16* soon,
                          const Update& update, float* out) {
    __m512 sum[Rows][2];
#pragma GCC unroll 14
    for (int i = 0; i < Rows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int p = 0; p < n_pairs; ++p) {
        const bf16* columns = panel + int64_t{p} * 2 * kPanel;
        _mm_prefetch(soon + int64_t{p} * 2 * kPanel, _MM_HINT_T1);
        _mm_prefetch(soon + int64_t{p} * 2 * kPanel + kPanel, _MM_HINT_T1);
        const __m512bh left = load_pairs(columns), right = load_pairs(columns + kPanel);
#pragma GCC unroll 14
        for (int i = 0; i < Rows; ++i) {
            const __m512bh pair = broadcast_pair(x + i * stride + 2 * p);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], pair, left);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], pair, right);
        }
    }
    for (int half = 0; half < 2; ++half) {
        for (int p = 0; p < update.n_pairs[half]; ++p) {
            const __m512bh columns = load_pairs(update.u[half] + int64_t{p} * kPanel);
#pragma GCC unroll 14
            for (int i = 0; i < Rows; ++i) {
                const __m512bh pair = broadcast_pair(update.mixed[half] + i * update.stride + 2 * p);
                sum[i][half] = _mm512_dpbf16_ps(sum[i][half], pair, columns);
            }
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < Rows; ++i) {
        _mm512_store_ps(out + i * kPanel, sum[i][0]);
        _mm512_store_ps(out + i * kPanel + kLanes, sum[i][1]);
    }
}

using TileFunction = void (*)(const bf16*, int64_t, int, const bf16*, const bf16*, const Update&, float*);

inline TileFunction tile_function(int n_rows) {
    static constexpr TileFunction functions[] = {
        nullptr,           multiply_tile<1>,  multiply_tile<2>,  multiply_tile<3>,  multiply_tile<4>,
        multiply_tile<5>,  multiply_tile<6>,  multiply_tile<7>,  multiply_tile<8>,  multiply_tile<9>,
        multiply_tile<10>, multiply_tile<11>, multiply_tile<12>, multiply_tile<13>, multiply_tile<14>};
    return functions[n_rows];
}

// Hand each tile of one panel to finish(first token, n_tokens, tile [n_tokens][32]).
template <class Finish>
static void multiply_panel(const Group& group, int panel, const bf16* x, int n_tokens, const bf16* mixed,
                           Finish finish) {
    alignas(64) float tile[kTileRows * kPanel];
    const int n_tiles = (n_tokens + kTileRows - 1) / kTileRows;
    const bf16* columns = group.weight + int64_t{panel} * group.n_in * kPanel;
    for (int t = 0; t < n_tiles; ++t) {
        const int first = static_cast<int>(int64_t{n_tokens} * t / n_tiles);
        const int n_rows = static_cast<int>(int64_t{n_tokens} * (t + 1) / n_tiles) - first;
        Update update{};
        update.stride = group.mixed_width;
        for (int half = 0; half < 2 && mixed != nullptr; ++half) {
            const int site = group.half_sites[2 * panel + half];
            if (site < 0) continue;
            update.mixed[half] = mixed + int64_t{first} * group.mixed_width + group.sites[site].mixed_offset;
            update.u[half] = group.u + group.u_offsets[2 * panel + half];
            update.n_pairs[half] = (group.sites[site].k_out + 1) / 2;
        }
        const bf16* rows = x + int64_t{first} * group.n_in;
        const bf16* soon = columns + (n_tiles > 1 && t == n_tiles - 1 ? int64_t{group.n_in} * kPanel : kAhead);
        tile_function(n_rows)(rows, group.n_in, group.n_in / 2, columns, soon, update, tile);
        if (group.bias != nullptr && panel < group.n_panels) {
            const __m512 left = _mm512_loadu_ps(group.bias + panel * kPanel);
            const __m512 right = _mm512_loadu_ps(group.bias + panel * kPanel + kLanes);
            for (int i = 0; i < n_rows; ++i) {
                float* row = tile + i * kPanel;
                _mm512_store_ps(row, _mm512_add_ps(_mm512_load_ps(row), left));
                _mm512_store_ps(row + kLanes, _mm512_add_ps(_mm512_load_ps(row + kLanes), right));
            }
        }
        finish(first, n_rows, tile);
    }
}

// sum over j of core[o][j] * z[j], for every o, in float32; core is row-major.
static void multiply_core(const Site& site, const float* core, const float* z, bf16* mixed) {
    for (int o = 0; o < site.k_out; ++o) {
        __m512 sum = _mm512_setzero_ps();
        const float* row = core + int64_t{o} * site.k_in;
        for (int j = 0; j < site.k_in; j += kLanes) {
            const __mmask16 mask = first_lanes(site.k_in - j);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, row + j), _mm512_maskz_loadu_ps(mask, z + j), sum);
        }
        mixed[o] = to_bf16(_mm512_reduce_add_ps(sum));
    }
    if (site.k_out % 2 != 0) mixed[site.k_out] = 0;
}

// mixed = S_t z of one token at all sites of a group; zeros for the base.
static void mix_token(const Group& group, const Tasks& tasks, int token, const float* z, bf16* mixed) {
    const int32_t row = tasks.rows[token];
    if (row < 0) {
        std::memset(mixed, 0, sizeof(bf16) * group.mixed_width);
        return;
    }
    const float* cores = tasks.cores + row * tasks.row_stride;
    for (int s = 0; s < group.n_sites; ++s) {
        const Site& site = group.sites[s];
        multiply_core(site, cores + site.core_offset, z + site.z_offset, mixed + site.mixed_offset);
    }
}

// low = A x of one token at all sites of a group.
static void shrink_token(const Group& group, const Residuals& residuals, int token, const bf16* x) {
    const Residual* table = residuals.tables[token];
    if (table == nullptr) return;
    for (int s = 0; s < group.n_sites; ++s) shrink(table[group.sites[s].number], x, residuals.low_of(token, s));
}

// sums [32] of one token at a panel += B low.
static void add_residual(const Group& group, const Residuals& residuals, int panel, int token, float* sums) {
    const Residual* table = residuals.tables[token];
    if (table == nullptr) return;
    for (int half = 0; half < 2; ++half) {
        const int site = group.half_sites[2 * panel + half];
        if (site < 0) continue;
        add_expanded(table[group.sites[site].number], group.half_columns[2 * panel + half],
                     residuals.low_of(token, site), sums + half * kLanes);
    }
}

// [n_out][n_in] row-major to panels; columns past n_out are zeros.
static void pack_panels(const bf16* weight, int n_out, int n_in, bf16* packed) {
    const int n_panels = (n_out + kPanel - 1) / kPanel;
    for (int panel = 0; panel < n_panels; ++panel)
        for (int p = 0; p < n_in / 2; ++p)
            for (int c = 0; c < kPanel; ++c) {
                const int column = panel * kPanel + c;
                bf16* to = packed + ((int64_t{panel} * (n_in / 2) + p) * kPanel + c) * 2;
                const bf16* from = weight + int64_t{column} * n_in + 2 * p;
                to[0] = column < n_out ? from[0] : 0;
                to[1] = column < n_out ? from[1] : 0;
            }
}

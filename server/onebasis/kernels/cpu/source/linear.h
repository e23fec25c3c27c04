// y = W x + U^T S_t (V x) for a group of linear layers that read the same input, over tokens of many tasks.
//
// W and V are packed in panels of 32 columns, so that one pass over a panel serves every token. The update is the
// tail of the same sum: mixed = S_t (V x) is one more piece of x, U one more piece of the panel. Each number of y is
// one chain of additions in an order that no other token changes: a token's result does not depend on its batch.
//
// W may be whole numbers of 8 bits with a scale for each column. They are multiplied as the bfloat16 numbers that they
// are exactly; a column's sum is scaled before its update is added.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

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
    const void* weight;          // [n_panels][n_in / 2][32][2] bf16, or quantized in the order of load_columns
    const float* scales;         // [n_panels * 32] of a quantized weight, null for bf16
    const float* bias;           // [n_panels * 32] or null
    const bf16* v;               // [n_v_panels][n_in / 2][32][2]
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

using quantized = uint8_t;  // -127 to 127: the sign, then 7 bits

// The bytes of 0 to 127 in bfloat16.
struct Magnitudes {
    alignas(64) uint8_t low[128], high[128];

    constexpr Magnitudes() : low(), high() {
        for (int i = 0; i < 128; ++i) {
            const auto number = std::bit_cast<uint32_t>(static_cast<float>(i)) >> 16;
            low[i] = static_cast<uint8_t>(number);
            high[i] = static_cast<uint8_t>(number >> 8);
        }
    }
};

constexpr Magnitudes kMagnitudes;

// A matrix in panels of 32 columns.
template <class Number>
struct Panels {
    const Number* numbers;
    const float* scales;  // of quantized columns
    const float* bias;    // or null
};

struct Update {
    const bf16* mixed[2];  // first token's numbers for each half
    const bf16* u[2];
    int32_t n_pairs[2];
    int64_t stride;
};

// A pair of rows of a panel: columns 0 to 15 and 16 to 31.
inline void load_columns(const bf16* row, __m512bh& left, __m512bh& right) {
    left = load_pairs(row);
    right = load_pairs(row + kPanel);
}

// Each 16 bytes hold the pairs of 4 left and then of 4 right columns. The bytes of a magnitude's bfloat16 number are
// looked up in tables of 128.
inline void load_columns(const quantized* row, __m512bh& left, __m512bh& right) {
    const __m512i codes = _mm512_loadu_si512(row), sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(kMagnitudes.low), codes,
                                                 _mm512_loadu_si512(kMagnitudes.low + 64));
    const __m512i magnitude = _mm512_permutex2var_epi8(_mm512_loadu_si512(kMagnitudes.high), codes,
                                                       _mm512_loadu_si512(kMagnitudes.high + 64));
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, sign, 0xf8);  // magnitude | (codes & sign)
    left = (__m512bh)_mm512_unpacklo_epi8(low, high);
    right = (__m512bh)_mm512_unpackhi_epi8(low, high);
}

template <int Rows, class Number>
static void multiply_tile(const bf16* x, int64_t stride, int n_pairs, const Number* panel, const Number* soon,
                          const float* scales, const Update& update, float* out) {
    __m512 sum[Rows][2];
#pragma GCC unroll 14
    for (int i = 0; i < Rows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int p = 0; p < n_pairs; ++p) {
        for (int64_t line = 0; line < 2 * kPanel; line += 64 / sizeof(Number))
            _mm_prefetch(soon + int64_t{p} * 2 * kPanel + line, _MM_HINT_T1);
        __m512bh left, right;
        load_columns(panel + int64_t{p} * 2 * kPanel, left, right);
#pragma GCC unroll 14
        for (int i = 0; i < Rows; ++i) {
            const __m512bh pair = broadcast_pair(x + i * stride + 2 * p);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], pair, left);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], pair, right);
        }
    }
    for (int half = 0; half < 2; ++half) {
        if constexpr (std::is_same_v<Number, quantized>) {
            const __m512 scale = _mm512_loadu_ps(scales + half * kLanes);
#pragma GCC unroll 14
            for (int i = 0; i < Rows; ++i) sum[i][half] = _mm512_mul_ps(sum[i][half], scale);
        }
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

template <class Number>
using TileFunction = void (*)(const bf16*, int64_t, int, const Number*, const Number*, const float*, const Update&, float*);

template <class Number>
inline TileFunction<Number> tile_function(int n_rows) {
    return []<int... I>(std::integer_sequence<int, I...>, int i) {
        static constexpr TileFunction<Number> functions[] = {multiply_tile<I + 1, Number>...};
        return functions[i];
    }(std::make_integer_sequence<int, kTileRows>(), n_rows - 1);
}

// Hand each tile of one panel to finish(first token, n_tokens, tile [n_tokens][32]).
template <class Number, class Finish>
static void multiply_panel(const Group& group, const Panels<Number>& panels, int panel, const bf16* x, int n_tokens,
                           const bf16* mixed, Finish finish) {
    alignas(64) float tile[kTileRows * kPanel];
    const int n_tiles = (n_tokens + kTileRows - 1) / kTileRows;
    const Number* columns = panels.numbers + int64_t{panel} * group.n_in * kPanel;
    const float* scales = panels.scales == nullptr ? nullptr : panels.scales + panel * kPanel;
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
        const Number* soon = columns + (n_tiles > 1 && t == n_tiles - 1 ? int64_t{group.n_in} * kPanel : kAhead);
        tile_function<Number>(n_rows)(rows, group.n_in, group.n_in / 2, columns, soon, scales, update, tile);
        if (panels.bias != nullptr) {
            const __m512 left = _mm512_loadu_ps(panels.bias + panel * kPanel);
            const __m512 right = _mm512_loadu_ps(panels.bias + panel * kPanel + kLanes);
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

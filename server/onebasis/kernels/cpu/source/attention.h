// Attention of one token over its sequence's blocks of the KV cache, for the query heads that share one key head.
//
// A block holds 16 tokens of one key head as the dot-product instruction wants them: keys [dim / 2][16][2], values
// [8][dim][2]. Every token is computed alone and in the order of positions, so its result does not depend on how the
// prompt was cut into chunks or on who else is in the batch.
#pragma once

#include <algorithm>
#include <limits>

#include "vectors.h"

constexpr int kBlock = 16;  // tokens of a cache block

struct CacheShape {
    int32_t n_kv_heads, head_dim;

    int64_t block_numbers() const { return int64_t{kBlock} * n_kv_heads * head_dim; }
    int64_t head_offset(int64_t block, int head) const { return block * block_numbers() + int64_t{kBlock} * head * head_dim; }
};

// Store one token's key and value of one head; offset is its place in the block.
static void write_key_value(bf16* keys, bf16* values, int offset, int head_dim, const float* key, const float* value) {
    for (int d = 0; d < head_dim; d += 2) {
        keys[(d / 2 * kBlock + offset) * 2] = to_bf16(key[d]);
        keys[(d / 2 * kBlock + offset) * 2 + 1] = to_bf16(key[d + 1]);
    }
    for (int d = 0; d < head_dim; ++d) values[(offset / 2 * head_dim + d) * 2 + offset % 2] = to_bf16(value[d]);
}

// query [head_dim], scores [n_visible rounded up to 16]; positions before `first` are left out.
static float score(const bf16* query, const bf16* key_cache, const CacheShape& shape, int kv_head, const int64_t* blocks,
                   int first, int n_visible, float scaling, float* scores) {
    const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512 highest = nothing;
    for (int start = first / kBlock * kBlock; start < n_visible; start += kBlock) {
        const bf16* keys = key_cache + shape.head_offset(blocks[start / kBlock], kv_head);
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int p = 0; p < shape.head_dim / 2; p += 2) {
            even = _mm512_dpbf16_ps(even, broadcast_pair(query + 2 * p), load_pairs(keys + p * kBlock * 2));
            odd = _mm512_dpbf16_ps(odd, broadcast_pair(query + 2 * p + 2), load_pairs(keys + (p + 1) * kBlock * 2));
        }
        unsigned visible = 0xffffu;
        if (start + kBlock > n_visible) visible &= 0xffffu >> (start + kBlock - n_visible);
        if (start < first) visible &= 0xffffu << (first - start);
        const __m512 sums = _mm512_mul_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(scaling));
        const __m512 kept = _mm512_mask_blend_ps(static_cast<__mmask16>(visible), nothing, sums);
        _mm512_storeu_ps(scores + start, kept);
        highest = _mm512_max_ps(highest, kept);
    }
    return _mm512_reduce_max_ps(highest);
}

// softmax(scores) times the values: [head_dim] bf16. HeadBlocks = head_dim / 16.
template <int HeadBlocks>
static void weigh_values(float* scores, float highest, const bf16* value_cache, const CacheShape& shape, int kv_head,
                         const int64_t* blocks, int first, int n_visible, bf16* out) {
    constexpr int head_dim = HeadBlocks * kLanes;
    __m512 sum[HeadBlocks];
    for (auto& part : sum) part = _mm512_setzero_ps();
    __m512 mass = _mm512_setzero_ps();
    const __m512 peak = _mm512_set1_ps(highest);
    for (int start = first / kBlock * kBlock; start < n_visible; start += kBlock) {
        const __m512 weights = exp_negative(_mm512_sub_ps(_mm512_loadu_ps(scores + start), peak));
        mass = _mm512_add_ps(mass, weights);
        alignas(32) bf16 rounded[kBlock];
        store_bf16(rounded, weights);
        const bf16* values = value_cache + shape.head_offset(blocks[start / kBlock], kv_head);
        const int n_here = std::min(kBlock, n_visible - start);
        for (int p = 0; p < (n_here + 1) / 2; ++p) {
            const __m512bh pair = broadcast_pair(rounded + 2 * p);
            const __mmask32 written = 2 * p + 1 < n_here ? 0xffffffffu : 0x55555555u;  // 0 * what was there may be NaN
            for (int d = 0; d < HeadBlocks; ++d) {
                const __m512i raw = _mm512_loadu_si512(values + (int64_t{p} * head_dim + d * kLanes) * 2);
                sum[d] = _mm512_dpbf16_ps(sum[d], pair, (__m512bh)_mm512_maskz_mov_epi16(written, raw));
            }
        }
    }
    const __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(mass));
    for (int d = 0; d < HeadBlocks; ++d) store_bf16(out + d * kLanes, _mm512_mul_ps(sum[d], scale));
}

using WeighFunction = void (*)(float*, float, const bf16*, const CacheShape&, int, const int64_t*, int, int, bf16*);

inline WeighFunction weigh_function(int head_dim) {
    switch (head_dim / kLanes) {
        case 1: return weigh_values<1>;
        case 2: return weigh_values<2>;
        case 4: return weigh_values<4>;
        case 5: return weigh_values<5>;
        case 6: return weigh_values<6>;
        case 8: return weigh_values<8>;
        default: return nullptr;
    }
}

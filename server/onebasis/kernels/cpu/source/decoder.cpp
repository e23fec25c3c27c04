// One step of a Llama-shaped decoder on a CPU: every layer, for a mixed batch of prefill and decode tokens of many
// tasks. bfloat16 weights and activations, float32 sums and residual stream. Called through a C interface from
// cpu/library.py, whose structures mirror the ones here.

#include "attention.h"
#include "linear.h"
#include "team.h"
#include "update.h"

struct Layer {
    Group qkv, output, gate_up, down;
    const float* input_norm;   // [hidden]
    const float* middle_norm;  // [hidden]
    const float* query_norm;   // [head_dim] or null
    const float* key_norm;     // [head_dim] or null
    bf16* keys;                // cache, see attention.h
    bf16* values;
    int32_t window;  // how many tokens back a token may see, its own included; 0 for all
};

struct Model {
    int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, intermediate, n_vocab;
    float norm_eps, scaling;
    const bf16* embeddings;  // [n_vocab][hidden]
    const float* final_norm;
    const float* cos;  // [positions][head_dim]
    const float* sin;
    const Layer* layers;
    Group head;
};

struct Step {
    int32_t n_tokens, n_samples, max_visible;
    const int64_t* token_ids;      // [n_tokens]
    const int64_t* positions;      // [n_tokens] in its sequence
    const int64_t* kv_rows;        // [n_tokens] block * 16 + offset
    const int64_t* block_offsets;  // [n_tokens] where its sequence's blocks begin in `blocks`
    const int64_t* blocks;
    Tasks tasks;
    const int64_t* sample_rows;  // [n_samples] tokens whose logits are wanted
    float* logits;               // [n_samples][n_vocab]
    int64_t* best;               // [n_samples] where the highest logit is, see argmax
    char* workspace;             // of workspace_bytes(), 64-byte aligned
};

namespace {

// Scratch of one step, cut from one piece of memory.
struct Workspace {
    float *residual, *qkv, *z, *scores;
    bf16 *input, *query, *attended, *activated, *mixed;
    int64_t n_bytes;

    Workspace(const Model& model, char* memory, int64_t n_tokens, int64_t max_visible, int n_threads) : n_bytes(0) {
        int64_t z_width = 0, mixed_width = 0;
        for (int i = 0; i < model.n_layers; ++i)
            for (const Group* g : {&model.layers[i].qkv, &model.layers[i].output, &model.layers[i].gate_up,
                                   &model.layers[i].down}) {
                z_width = std::max(z_width, int64_t{g->n_v_panels} * kPanel);
                mixed_width = std::max(mixed_width, int64_t{g->mixed_width});
            }
        const int64_t n_query = int64_t{model.n_heads} * model.head_dim;
        const int64_t n_qkv = n_query + 2 * int64_t{model.n_kv_heads} * model.head_dim;
        residual = take<float>(memory, n_tokens * model.hidden);
        qkv = take<float>(memory, n_tokens * n_qkv);
        z = take<float>(memory, n_tokens * z_width);
        scores = take<float>(memory, n_threads * scores_stride(max_visible));
        input = take<bf16>(memory, n_tokens * model.hidden);
        query = take<bf16>(memory, n_tokens * n_query);
        attended = take<bf16>(memory, n_tokens * n_query);
        activated = take<bf16>(memory, n_tokens * model.intermediate);
        mixed = take<bf16>(memory, n_tokens * mixed_width);
    }

    static int64_t scores_stride(int64_t max_visible) { return (max_visible + 2 * kBlock) / kBlock * kBlock; }

  private:
    template <class Number>
    Number* take(char* memory, int64_t n) {
        Number* piece = reinterpret_cast<Number*>(memory + n_bytes);
        n_bytes += (n * static_cast<int64_t>(sizeof(Number)) + 63) / 64 * 64;
        return piece;
    }
};

float inverse_rms(const float* x, int n, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n; i += kLanes) {
        const __m512 part = _mm512_loadu_ps(x + i);
        sum = _mm512_fmadd_ps(part, part, sum);
    }
    return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / static_cast<float>(n) + eps);
}

void normalize(const float* x, const float* weight, int n, float eps, bf16* out) {
    const __m512 scale = _mm512_set1_ps(inverse_rms(x, n, eps));
    for (int i = 0; i < n; i += kLanes)
        store_bf16(out + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale), _mm512_loadu_ps(weight + i)));
}

void add_columns(float* to, const float* from, int n) {
    for (int c = 0; c < n; ++c) to[c] += from[c];
}

// One thread's view of a step. The functions are called by every thread of the team; each ends when all have done it.

struct Runner {
    const Model& model;
    const Step& step;
    const Workspace& work;
    Member& member;

    bool has_tasks() const { return step.tasks.rows != nullptr; }
    bool has_residuals() const { return step.tasks.residuals.tables != nullptr; }

    void embed() const {
        member.share(step.n_tokens, [&](int t) {
            const bf16* from = model.embeddings + step.token_ids[t] * model.hidden;
            float* to = work.residual + int64_t{t} * model.hidden;
            for (int i = 0; i < model.hidden; i += kLanes)
                _mm512_storeu_ps(to + i, widened(_mm256_loadu_si256((const __m256i*)(from + i))));
        });
    }

    // Normalised input where `norm` is given, and every token's mixed numbers where the group has sites.
    void prepare(const Group& group, const bf16* x, const float* norm) const {
        const bool mixes = has_tasks() && group.n_sites > 0;
        if (norm == nullptr && !mixes) return;
        if (norm != nullptr)
            member.share(step.n_tokens, [&](int t) {
                normalize(work.residual + int64_t{t} * model.hidden, norm, model.hidden, model.norm_eps,
                          work.input + int64_t{t} * model.hidden);
            });
        if (!mixes) return;
        const int n_tiles = (step.n_tokens + kTileRows - 1) / kTileRows;
        const int z_width = group.n_v_panels * kPanel;
        const Panels<bf16> v{group.v, nullptr, nullptr};
        member.share(n_tiles * group.n_v_panels, [&](int item) {
            const int panel = item / n_tiles, first = item % n_tiles * kTileRows;
            const int n_rows = std::min(kTileRows, step.n_tokens - first);
            multiply_panel(group, v, panel, x + int64_t{first} * group.n_in, n_rows, nullptr,
                           [&](int row, int n, const float* sums) {
                               for (int i = 0; i < n; ++i)
                                   std::memcpy(work.z + int64_t{first + row + i} * z_width + panel * kPanel,
                                               sums + i * kPanel, sizeof(float) * kPanel);
                           });
        });
        member.share(step.n_tokens, [&](int t) {
            mix_token(group, step.tasks, t, work.z + int64_t{t} * z_width, work.mixed + int64_t{t} * group.mixed_width);
            if (has_residuals()) shrink_token(group, step.tasks.residuals, t, x + int64_t{t} * group.n_in);
        });
    }

    template <class Finish>
    void multiply(const Group& group, const bf16* x, int n_rows, bool mixes, Finish finish) const {
        if (group.scales != nullptr)
            multiply_panels(group, Panels{static_cast<const quantized*>(group.weight), group.scales, group.bias}, x,
                            n_rows, mixes, finish);
        else
            multiply_panels(group, Panels{static_cast<const bf16*>(group.weight), nullptr, group.bias}, x, n_rows,
                            mixes, finish);
    }

    template <class Number, class Finish>
    void multiply_panels(const Group& group, const Panels<Number>& panels, const bf16* x, int n_rows, bool mixes,
                         Finish finish) const {
        const bf16* mixed = mixes && has_tasks() && group.n_sites > 0 ? work.mixed : nullptr;
        member.share(group.n_panels, [&](int panel) {
            multiply_panel(group, panels, panel, x, n_rows, mixed, [&](int first, int n, float* tile) {
                if (mixed != nullptr && has_residuals())
                    for (int i = 0; i < n; ++i)
                        add_residual(group, step.tasks.residuals, panel, first + i, tile + i * kPanel);
                for (int i = 0; i < n; ++i) finish(panel, first + i, tile + i * kPanel);
            });
        });
    }

    void add_to_residual(const Group& group, const bf16* x) const {
        prepare(group, x, nullptr);
        multiply(group, x, step.n_tokens, true, [&](int panel, int t, const float* sums) {
            const int column = panel * kPanel;
            add_columns(work.residual + int64_t{t} * model.hidden + column, sums,
                        std::min(kPanel, model.hidden - column));
        });
    }

    // Positions into query and key; key and value into the cache.
    void rotate_and_store(const Layer& layer) const {
        const int dim = model.head_dim, n_query = model.n_heads * dim, n_key = model.n_kv_heads * dim;
        const CacheShape shape{model.n_kv_heads, dim};
        member.share(step.n_tokens, [&](int t) {
            float* qkv = work.qkv + int64_t{t} * (n_query + 2 * n_key);
            for (int h = 0; h < model.n_heads; ++h) {
                rotate(qkv + h * dim, layer.query_norm, t);
                for (int d = 0; d < dim; d += kLanes)
                    store_bf16(work.query + int64_t{t} * n_query + h * dim + d, _mm512_loadu_ps(qkv + h * dim + d));
            }
            for (int h = 0; h < model.n_kv_heads; ++h) {
                float* key = qkv + n_query + h * dim;
                rotate(key, layer.key_norm, t);
                const int64_t at = shape.head_offset(step.kv_rows[t] / kBlock, h);
                write_key_value(layer.keys + at, layer.values + at, static_cast<int>(step.kv_rows[t] % kBlock), dim, key,
                                key + n_key);
            }
        });
    }

    void attend(const Layer& layer) const {
        const int dim = model.head_dim, group = model.n_heads / model.n_kv_heads;
        const CacheShape shape{model.n_kv_heads, dim};
        const WeighFunction weigh = weigh_function(dim);
        float* scores = work.scores + member.index() * Workspace::scores_stride(step.max_visible);
        const int n_units = step.n_tokens * model.n_kv_heads;
        member.share(n_units, [&](int unit) {
            const int t = unit / model.n_kv_heads, kv_head = unit % model.n_kv_heads;
            const int n_visible = static_cast<int>(step.positions[t]) + 1;
            const int first = layer.window > 0 ? std::max(0, n_visible - layer.window) : 0;
            const int64_t* blocks = step.blocks + step.block_offsets[t];
            for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
                const int64_t at = (int64_t{t} * model.n_heads + h) * dim;
                const float highest = score(work.query + at, layer.keys, shape, kv_head, blocks, first, n_visible,
                                            model.scaling, scores);
                weigh(scores, highest, layer.values, shape, kv_head, blocks, first, n_visible, work.attended + at);
            }
        });
    }

    void run_layer(const Layer& layer) const {
        const int64_t n_qkv = int64_t{model.n_heads + 2 * model.n_kv_heads} * model.head_dim;
        prepare(layer.qkv, work.input, layer.input_norm);
        multiply(layer.qkv, work.input, step.n_tokens, true, [&](int panel, int t, const float* sums) {
            const int64_t column = int64_t{panel} * kPanel;
            std::memcpy(work.qkv + t * n_qkv + column, sums, sizeof(float) * std::min<int64_t>(kPanel, n_qkv - column));
        });
        rotate_and_store(layer);
        attend(layer);
        add_to_residual(layer.output, work.attended);
        prepare(layer.gate_up, work.input, layer.middle_norm);
        multiply(layer.gate_up, work.input, step.n_tokens, true, [&](int panel, int t, const float* sums) {
            const __m512 gate = _mm512_load_ps(sums), up = _mm512_load_ps(sums + kLanes);  // a panel is half and half
            store_bf16(work.activated + int64_t{t} * model.intermediate + panel * kLanes, _mm512_mul_ps(silu(gate), up));
        });
        add_to_residual(layer.down, work.activated);
    }

    void run_head() const {
        member.share(step.n_samples, [&](int i) {
            normalize(work.residual + step.sample_rows[i] * model.hidden, model.final_norm, model.hidden, model.norm_eps,
                      work.input + int64_t{i} * model.hidden);
        });
        multiply(model.head, work.input, step.n_samples, false, [&](int panel, int i, const float* sums) {
            const int column = panel * kPanel;
            std::memcpy(step.logits + int64_t{i} * model.n_vocab + column, sums,
                        sizeof(float) * std::min(kPanel, model.n_vocab - column));
        });
        member.share(step.n_samples, [&](int i) {
            step.best[i] = argmax(step.logits + int64_t{i} * model.n_vocab, model.n_vocab);
        });
    }

  private:
    void rotate(float* x, const float* norm, int t) const {
        const int dim = model.head_dim, half = dim / 2;
        const float* cos = model.cos + step.positions[t] * dim;
        const float* sin = model.sin + step.positions[t] * dim;
        const float scale = norm == nullptr ? 1.0f : inverse_rms(x, dim, model.norm_eps);
        for (int d = 0; d < half; ++d) {
            const float first = norm == nullptr ? x[d] : x[d] * scale * norm[d];
            const float second = norm == nullptr ? x[d + half] : x[d + half] * scale * norm[d + half];
            x[d] = first * cos[d] - second * sin[d];
            x[d + half] = second * cos[d + half] + first * sin[d + half];
        }
    }
};

}  // namespace

extern "C" {

Team* onebasis_make_team(int32_t n_threads) { return new Team(n_threads); }

void onebasis_end_team(Team* team) { delete team; }

int64_t onebasis_workspace_bytes(const Model* model, int32_t max_tokens, int32_t max_visible, int32_t n_threads) {
    return Workspace(*model, nullptr, max_tokens, max_visible, n_threads).n_bytes;
}

void onebasis_pack_panels(const bf16* weight, int32_t n_out, int32_t n_in, bf16* packed) {
    pack_panels(weight, n_out, n_in, packed);
}

void onebasis_run_step(Team* team, const Model* model, const Step* step) {
    const Workspace work(*model, step->workspace, step->n_tokens, step->max_visible, team->n_members());
    team->run([&](Member& member) {
        const Runner runner{*model, *step, work, member};
        runner.embed();
        for (int i = 0; i < model->n_layers; ++i) runner.run_layer(model->layers[i]);
        runner.run_head();
    });
}

int32_t onebasis_argmax(const float* numbers, int32_t n) { return argmax(numbers, n); }  // for its tests

void onebasis_add_update(const LayerUpdate* layer) { update::add(*layer); }

// exp_negative of n numbers, a multiple of 16, in place: so that its error can be measured.
void onebasis_exp_negative(float* numbers, int32_t n) {
    for (int32_t i = 0; i < n; i += kLanes) _mm512_storeu_ps(numbers + i, exp_negative(_mm512_loadu_ps(numbers + i)));
}

int64_t onebasis_struct_bytes(int32_t which) {
    const int64_t sizes[] = {sizeof(Site),  sizeof(Group), sizeof(Residual), sizeof(Tasks),
                             sizeof(Layer), sizeof(Model), sizeof(Step),     sizeof(LayerUpdate)};
    return sizes[which];
}
}

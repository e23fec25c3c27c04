"""The decoder step in compiled C++, for Llama-shaped models in bfloat16 on a CPU that multiplies bfloat16 pairs.

The base's weights may be held in 8 bits; basis, cores, residuals, KV cache and sums are the same then. A token's logits
are the same bits whatever else is in the batch and however its prompt was cut into chunks.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary, finalize

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebasis.coefficients.residual_cache import ResidentResidual
from onebasis.kernels.cpu.build import cpu_flags
from onebasis.kernels.cpu.library import (
    BLOCK_SIZE,
    HALF,
    HEAD_DIMS,
    MOST_SITES,
    NEEDED_CPU_FLAGS,
    PANEL,
    Group,
    Layer,
    Library,
    Model,
    Residual,
    Residuals,
    Site,
    Step,
    Tasks,
)
from onebasis.kernels.cpu.quantize import pack_codes, quantize_rows
from onebasis.kernels.memory import zeros_on_demand
from onebasis.model.batch import ForwardBatch, ResidualRun
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.kv_cache import head_shape
from onebasis.model.loader import LoadedBase

_ARCHITECTURES: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_ROPES_BY_LENGTH: Final = ("dynamic", "longrope")
_GROUPS: Final = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


Quantization = Literal["int8"]
"""int8: whole numbers with a scale for each row, the head's too, multiplied as the bfloat16 numbers that they are."""


@dataclass(frozen=True, slots=True)
class TaskTable:
    """Where the cores of the resident tasks lie: rows [n_rows, n_core_numbers] float32, a slot is a row."""

    rows: Tensor
    offsets: Mapping[str, int]
    """First number of a site's core in a row, by site name."""


def why_not(base: LoadedBase, block_size: int) -> str | None:
    """What keeps this model from running here; None if nothing does."""
    config = base.text_config
    architecture = type(base.model).__name__
    if architecture not in _ARCHITECTURES:
        return f"{architecture} is not one of {', '.join(_ARCHITECTURES)}"
    _, head_dim = head_shape(config)
    rope = base.model.model.rotary_emb.rope_type
    missing = [flag for flag in NEEDED_CPU_FLAGS if flag not in cpu_flags()]
    reasons = {
        f"device is {base.model.device.type}, not cpu": base.model.device.type != "cpu",
        f"dtype is {base.model.dtype}, not bfloat16": base.model.dtype != torch.bfloat16,
        f"the CPU lacks {', '.join(missing)}": bool(missing),
        f"block_size is {block_size}, not {BLOCK_SIZE}": block_size != BLOCK_SIZE,
        f"head_dim is {head_dim}, not one of {HEAD_DIMS}": head_dim not in HEAD_DIMS,
        f"hidden_size {config.hidden_size} is no multiple of {HALF}": config.hidden_size % HALF != 0,
        f"activation is {config.hidden_act}, not silu": config.hidden_act != "silu",
        f"rotary embedding is {rope}, whose angles depend on the length": rope in _ROPES_BY_LENGTH,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


class NativeDecoder:
    """Runs one step at a time. Owns packed weights, KV cache and scratch; engine thread only.

    Args:
        base: its decoder layers and head are packed one by one and taken out of it.
        tasks: needed with a basis.
        max_step_tokens: most tokens in a batch. max_model_len: most tokens that one of them may see.
        quantization: how the base's weights are held; None as they are.
        n_threads: that compute a step, the caller of `forward` among them. They are its own; where torch has threads
            of its own too, the two get in each other's way.
    """

    path = "native"

    def __init__(
        self,
        base: LoadedBase,
        basis: Basis | None,
        tasks: TaskTable | None,
        library: Library,
        *,
        n_blocks: int,
        max_step_tokens: int,
        max_model_len: int,
        n_threads: int,
        quantization: Quantization | None = None,
    ) -> None:
        self._library = library
        self._tasks = tasks
        self._max_visible = max_model_len
        self._packer = _Packer(
            library,
            {} if basis is None else basis.factors,
            {} if tasks is None else tasks.offsets,
            quantization=quantization,
        )
        self._residuals = _ResidualTables([] if basis is None else [*basis.factors])
        self._model = self._pack(base, n_blocks)
        self._team = library.make_team(n_threads)
        finalize(self, library.end_team, self._team)
        n_bytes = library.workspace_bytes(self._model, max_step_tokens, max_model_len, n_threads)
        self._workspace = torch.empty(n_bytes + 64, dtype=torch.uint8)
        self._logits = torch.empty(0, self._model.n_vocab)
        self._best = torch.empty(0, dtype=torch.int64)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits [n_samples, n_vocab] float32, at the rows that the batch asks for; valid until the next step."""
        n_samples = batch.logit_rows.shape[0]
        if n_samples > self._logits.shape[0]:
            self._logits = torch.empty(n_samples, self._model.n_vocab)
            self._best = torch.empty(n_samples, dtype=torch.int64)
        blocks, block_offsets = _flat_blocks(batch)
        tasks = Tasks()
        if batch.token_slots is not None and self._tasks is not None:
            tasks = Tasks(batch.token_slots.data_ptr(), self._tasks.rows.data_ptr(), self._tasks.rows.stride(0))
        if batch.residuals:
            tables, low, max_rank = self._residuals.of_step(batch.token_ids.shape[0], batch.residuals)
            tasks.residuals = Residuals(tables.data_ptr(), low.data_ptr(), max_rank)
        step = Step(
            n_tokens=batch.token_ids.shape[0],
            n_samples=n_samples,
            max_visible=self._max_visible,
            token_ids=batch.token_ids.data_ptr(),
            positions=batch.positions.data_ptr(),
            kv_rows=batch.kv_rows.data_ptr(),
            block_offsets=block_offsets.data_ptr(),
            blocks=blocks.data_ptr(),
            tasks=tasks,
            sample_rows=batch.logit_rows.data_ptr(),
            logits=self._logits.data_ptr(),
            best=self._best.data_ptr(),
            workspace=-(-self._workspace.data_ptr() // 64) * 64,
        )
        self._library.run_step(self._team, self._model, step)
        return self._logits[:n_samples]

    def argmax(self, logits: Tensor) -> Tensor:
        """As of any decoder; the step has found them."""
        return self._best[: logits.shape[0]]

    def _pack(self, base: LoadedBase, n_blocks: int) -> Model:
        model, config, packer = base.model, base.text_config, self._packer
        n_kv_heads, head_dim = head_shape(config)
        embeddings = model.get_input_embeddings()
        head = packer.group("", [("", model.get_output_embeddings())])
        embeddings.weight.data = embeddings.weight.data.clone()  # lets go of the checkpoint's mapping
        n_cache = (n_blocks, n_kv_heads, BLOCK_SIZE, head_dim)
        layers = (Layer * config.num_hidden_layers)()
        for i, layer in enumerate(model.model.layers):
            path = f"model.layers.{i}"
            qkv, output, gate_up, down = (
                packer.group(path, [(name, layer.get_submodule(name)) for name in names]) for names in _GROUPS
            )
            layers[i] = Layer(
                qkv=qkv,
                output=output,
                gate_up=gate_up,
                down=down,
                input_norm=packer.floats(layer.input_layernorm.weight),
                middle_norm=packer.floats(layer.post_attention_layernorm.weight),
                query_norm=packer.norm_of(layer.self_attn, "q_norm"),
                key_norm=packer.norm_of(layer.self_attn, "k_norm"),
                keys=packer.keep(zeros_on_demand(n_cache, dtype=torch.bfloat16, device=model.device)),
                values=packer.keep(zeros_on_demand(n_cache, dtype=torch.bfloat16, device=model.device)),
                window=_window(layer.self_attn, config),
            )
            model.model.layers[i] = nn.Identity()
        model.set_output_embeddings(nn.Identity())
        cos, sin = model.model.rotary_emb(torch.empty(0), torch.arange(self._max_visible).unsqueeze(0))
        return Model(
            n_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            n_heads=config.num_attention_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            intermediate=_padded(config.intermediate_size),
            n_vocab=config.vocab_size,
            norm_eps=config.rms_norm_eps,
            scaling=head_dim**-0.5,
            embeddings=packer.keep(embeddings.weight.data),
            final_norm=packer.floats(model.model.norm.weight),
            cos=packer.floats(cos),
            sin=packer.floats(sin),
            layers=layers,
            head=head,
        )


class _ResidualTables:
    """What the library reads of a residual: a table by the number of the site. Made once for each resident one.

    Args:
        site_names: in the order of their numbers.
    """

    def __init__(self, site_names: Sequence[str]) -> None:
        self._site_names = site_names
        self._tables: WeakKeyDictionary[ResidentResidual, ctypes.Array[Residual]] = WeakKeyDictionary()

    def of_step(self, n_tokens: int, runs: Sequence[ResidualRun]) -> tuple[Tensor, Tensor, int]:
        """Addresses of the tokens' tables, [n_tokens] int64 with 0 for none; scratch; the highest rank in them."""
        max_rank = max(run.residual.max_rank for run in runs)
        addresses = torch.zeros(n_tokens, dtype=torch.int64)
        for run in runs:
            addresses[run.start : run.end] = ctypes.addressof(self._table(run.residual))
        return addresses, torch.empty(n_tokens, MOST_SITES, max_rank), max_rank

    def _table(self, residual: ResidentResidual) -> ctypes.Array[Residual]:
        table = self._tables.get(residual)
        if table is None:
            table = (Residual * len(self._site_names))()
            for i, name in enumerate(self._site_names):
                factors = residual.sites.get(name)
                if factors is not None:
                    (rank, d_in), d_out = factors.a.shape, factors.b.shape[1]
                    table[i] = Residual(factors.a.data_ptr(), factors.b.data_ptr(), rank, d_in, d_out)
            self._tables[residual] = table
        return table


class _Packer:
    """Turns linear layers into the library's groups, and keeps alive what these point to."""

    def __init__(
        self,
        library: Library,
        factors: Mapping[str, SiteFactors],
        core_offsets: Mapping[str, int],
        *,
        quantization: Quantization | None,
    ) -> None:
        self._library = library
        self._quantization = quantization
        self._factors = factors
        self._core_offsets = core_offsets
        self._numbers = {name: number for number, name in enumerate(factors)}
        self._kept: list[Any] = []

    def keep(self, tensor: Tensor) -> int:
        """Its address, which stays valid as long as this object."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def floats(self, tensor: Tensor) -> int:
        """Address of a float32 copy."""
        return self.keep(tensor.detach().float().contiguous())

    def norm_of(self, module: nn.Module, name: str) -> int | None:
        """Address of the weight of a norm that only some families have."""
        norm = getattr(module, name, None)
        return None if norm is None else self.floats(norm.weight)

    def group(self, path: str, layers: Sequence[tuple[str, nn.Linear]]) -> Group:
        """Layers that read the same input, in order; two of them (gate, up) go half and half into each panel."""
        n_in = _padded(layers[0][1].in_features)
        sites = [f"{path}.{name}" for name, _ in layers]
        sites = [name for name in sites if name in self._factors]
        halves = _half_layers([layer.out_features for _, layer in layers])
        weight = _arrange([_pad_columns(layer.weight, n_in) for _, layer in layers], halves)
        group = Group(n_in=n_in, n_panels=weight.shape[0] // PANEL, n_sites=len(sites))
        self._add_weight(group, weight)
        if any(layer.bias is not None for _, layer in layers):
            biases = [
                layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for _, layer in layers
            ]
            group.bias = self.floats(_arrange([bias.unsqueeze(1) for bias in biases], halves))
        if sites:
            v = self._library.pack(torch.cat([_pad_columns(self._factors[name].v, n_in) for name in sites]))
            group.v, group.n_v_panels = self.keep(v), v.shape[0]
            self._add_sites(group, sites, [f"{path}.{layers[layer][0]}" for layer, _ in halves], halves)
        return group

    def _add_weight(self, group: Group, weight: Tensor) -> None:
        if self._quantization is None:
            group.weight = self.keep(self._library.pack(weight))
        else:
            codes, scales = quantize_rows(weight)
            group.weight = self.keep(pack_codes(codes))
            group.scales = self.floats(scales)

    def _add_sites(
        self, group: Group, names: list[str], site_of_half: list[str], halves: list[tuple[int, int]]
    ) -> None:
        structures = (Site * len(names))()
        z_offset = mixed_offset = 0
        for i, name in enumerate(names):
            factors = self._factors[name]
            k_in, k_out = factors.v.shape[0], factors.u.shape[0]
            structures[i] = Site(k_in, k_out, z_offset, mixed_offset, self._core_offsets[name], self._numbers[name])
            z_offset += k_in
            mixed_offset += k_out + k_out % 2
        pieces, offsets, sites, n_numbers = [], [], [], 0
        for name, (_, column) in zip(site_of_half, halves, strict=True):
            sites.append(names.index(name) if name in names else -1)
            offsets.append(n_numbers)
            if name in names:
                piece = _pack_half(self._factors[name].u, column)
                pieces.append(piece)
                n_numbers += piece.numel()
        group.mixed_width = mixed_offset
        group.u = self.keep(torch.cat(pieces))
        group.u_offsets = self.keep(torch.tensor(offsets))
        group.half_sites = self.keep(torch.tensor(sites, dtype=torch.int32))
        group.half_columns = self.keep(torch.tensor([column for _, column in halves], dtype=torch.int32))
        self._kept.append(structures)
        group.sites = ctypes.addressof(structures)


def _half_layers(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """For each half panel its layer and first column there; two layers alternate, otherwise one follows the other."""
    halves = [[(layer, start) for start in range(0, size, HALF)] for layer, size in enumerate(sizes)]
    if len(halves) == 2:
        return [half for pair in zip(*halves, strict=True) for half in pair]
    flat = [half for of_layer in halves for half in of_layer]
    return flat if len(flat) % 2 == 0 else [*flat, (len(sizes) - 1, _padded(sizes[-1]))]


def _arrange(rows: Sequence[Tensor], halves: list[tuple[int, int]]) -> Tensor:
    """The layers' rows in the order of the half panels, zeros where a layer ends inside one."""
    return torch.cat([_pad_rows(rows[layer][start : start + HALF]) for layer, start in halves])


def _pad_rows(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 0, 0, HALF - rows.shape[0]))


def _pad_columns(matrix: Tensor, n_columns: int) -> Tensor:
    return F.pad(matrix.detach(), (0, n_columns - matrix.shape[1]))


def _pack_half(u: Tensor, column: int) -> Tensor:
    """[k_out, d_out] -> columns `column` to `column + 16` as pairs of rows, flat [k_out / 2, 16, 2]."""
    columns = u[:, column : column + HALF]
    padded = F.pad(columns.to(torch.bfloat16), (0, HALF - columns.shape[1], 0, u.shape[0] % 2))
    return padded.view(-1, 2, HALF).transpose(1, 2).reshape(-1)


def _flat_blocks(batch: ForwardBatch) -> tuple[Tensor, Tensor]:
    """All block tables one behind the other, and where each token's begins."""
    tables: list[Tensor] = []
    offsets: list[Tensor] = []
    start = 0
    if batch.decodes is not None:
        n_seqs, width = batch.decodes.block_tables.shape
        tables.append(batch.decodes.block_tables.flatten())
        offsets.append(torch.arange(0, n_seqs * width, width))
        start = n_seqs * width
        if not batch.chunks:
            return tables[0], offsets[0]
    for chunk in batch.chunks:
        tables.append(chunk.block_table)
        offsets.append(torch.full((chunk.end - chunk.start,), start))
        start += chunk.block_table.shape[0]
    return torch.cat(tables), torch.cat(offsets)


def _padded(n: int) -> int:
    return -(-n // HALF) * HALF


def _window(attention: nn.Module, config: Any) -> int:
    """Tokens that the layer may look back; Mistral says it in the configuration, the others in the layer."""
    said = config.sliding_window if config.model_type == "mistral" else getattr(attention, "sliding_window", None)
    return int(said or 0)

"""The roofline page against what is known of the model and what the server really keeps."""

import pytest
import torch

from loadtests.roofline import LLAMA_8B, PAGE, Shape, main, page
from onebasis.coefficients.arena import Arena
from onebasis.model.adapted import GroupMember, StepTasks, adapt_model
from tests.model.families import CPU, tiny_base
from tests.model.tasks import random_basis


def test_the_committed_page_is_what_the_code_writes(tmp_path):
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.read_text() == page()


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--json", 2)])
def test_an_option_is_no_file(option, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([option])
    assert end.value.code == code
    assert not list(tmp_path.iterdir())


def test_the_table_of_shapes_is_that_of_the_model():
    """Llama-3.1-8B has 8,030,261,248 parameters, the embedding and 65 norms included, which are not counted here."""
    assert LLAMA_8B.n_weights + 128256 * 4096 + 65 * 4096 == 8_030_261_248
    assert LLAMA_8B.kv_bytes == 131_072


def test_a_lora_of_rank_16_has_as_many_numbers_as_peft_counts():
    """41,943,040 trainable parameters at all linear layers: what PEFT prints for this model at r=16."""
    assert LLAMA_8B.lora_numbers(16) == 41_943_040


def test_factors_and_cores_are_counted_as_the_server_keeps_them(tmp_path):
    base = tiny_base()
    config = base.text_config
    basis = random_basis(base, tmp_path, k=4)
    arena = Arena(basis.spec, n_slots=1, device=CPU)
    adapt_model(base.model, basis, arena.site_cores, StepTasks(arena.base_row))
    groups = {id(m._group): m._group for m in base.model.modules() if isinstance(m, GroupMember)}
    updates = [update for group in groups.values() for update in group._updates]
    shape = Shape(
        "tiny", config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
        config.head_dim, config.intermediate_size, config.vocab_size,
    )  # fmt: skip
    assert shape.factor_numbers(4) == sum(update.v.numel() + update.u.numel() for update in updates)
    assert shape.core_numbers(4) == arena.table.shape[1]
    assert arena.table.dtype is torch.float32


def test_from_the_first_win_on_the_basis_reads_less():
    for k in (16, 32, 64):
        n_tasks = LLAMA_8B.first_win(k, 16)
        assert n_tasks > 1, "with one task there is nothing to share"
        assert LLAMA_8B.basis_bytes(k, n_tasks) < LLAMA_8B.lora_bytes(16, n_tasks)
        assert LLAMA_8B.basis_bytes(k, n_tasks - 1) >= LLAMA_8B.lora_bytes(16, n_tasks - 1)


def test_cores_larger_than_an_adapter_never_win():
    assert LLAMA_8B.first_win(512, 16) == 0

"""The sides of the micro benchmark compute what they say, and the numbers made of their times."""

import json

import pytest
import torch

from loadtests.micro.__main__ import cell_results, main
from loadtests.micro.lora import LoraSite, lora_gather, lora_loop
from loadtests.micro.sides import BARE_OF, NATIVE_BARE, NATIVE_TASKS, TORCH_BARE, Cell
from onebasis.kernels import select
from tests.loadtests.conftest import subject_options
from tests.native import native_library

SMALL = ["--k", "3,4", "--cells", "2:1,5:3", "--layers", "2", "--rounds", "3", "--threads", "1", "--lora-rank", "2"]


def test_both_lora_ways_are_the_definition():
    torch.manual_seed(0)
    site = LoraSite(torch.randn(7, 5), torch.randn(3, 2, 5), torch.randn(3, 7, 2))
    x, tasks = torch.randn(6, 5), torch.tensor([2, 0, 1, 1, 2, 0])
    wanted = torch.stack([(site.weight + site.b[t] @ site.a[t]) @ x[i] for i, t in enumerate(tasks.tolist())])
    torch.testing.assert_close(lora_loop(site, x, tasks), wanted)
    torch.testing.assert_close(lora_gather(site, x, tasks), wanted)


def test_tax_is_over_the_bare_side_of_the_same_kind():
    times_s = {TORCH_BARE: [9.0, 9.0, 9.0], NATIVE_BARE: [0.1, 0.2, 0.4], NATIVE_TASKS: [0.3, 0.2, 0.9]}
    found = {result.side: result for result in cell_results(16, Cell(8, 4), times_s, n_layers=10)}
    assert found[NATIVE_TASKS].tax == pytest.approx(1.5)
    assert found[NATIVE_BARE].tax is None
    assert (found[NATIVE_BARE].layer_ms.median, found[NATIVE_BARE].layer_ms.n) == (pytest.approx(20.0), 3)


def test_every_cell_has_all_sides(tiny_subject, tmp_path):
    native_library()
    file = tmp_path / "micro.json"
    assert main([*subject_options(tiny_subject[0]), *SMALL, "--json", str(file)]) == 0
    saved = json.loads(file.read_text())
    cells = {(cell["k"], cell["n_tokens"], cell["n_tasks"]) for cell in saved["cells"]}
    assert cells == {(3, 2, 1), (3, 5, 3), (4, 2, 1), (4, 5, 3)}
    assert len(saved["cells"]) == 4 * 8
    assert all(cell["layer_ms"]["n"] == 3 and cell["layer_ms"]["median"] > 0 for cell in saved["cells"])
    assert all((cell["tax"] is None) == (cell["side"] not in BARE_OF) for cell in saved["cells"])


def test_wrong_numbers_stop_the_run(tiny_subject, monkeypatch, capsys):
    native_library()
    right = select.torch_batched.mix_cores
    monkeypatch.setattr(select.torch_batched, "mix_cores", lambda *args: 3 * right(*args))
    assert main([*subject_options(tiny_subject[0]), *SMALL]) == 1
    assert "shared basis and its definition disagree" in capsys.readouterr().err


@pytest.mark.parametrize("cells", ["8:9", "0:0"])
def test_a_cell_that_can_not_be_is_refused(cells):
    with pytest.raises(SystemExit):
        main(["--cells", cells])

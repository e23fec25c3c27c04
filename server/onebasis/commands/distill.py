"""`onebasis distill`: train coefficients to answer as an existing adapter does."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import TaskID

from onebasis.commands.console import (
    LARGEST_SEED,
    BasisOption,
    ModelOption,
    ThreadsOption,
    progress_bars,
    say,
    set_threads,
)
from onebasis.core.errors import SetupError
from onebasis.core.ids import parse_task_name
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.data import split
from onebasis.fitting.distillation.job import Progress, PromptSet, distill_adapter
from onebasis.fitting.distillation.prompts import Prompt, read_prompts, sample_prompts, tokenize_prompts
from onebasis.fitting.fidelity import Fidelity
from onebasis.fitting.files import check_output
from onebasis.fitting.peft.adapter import PeftAdapter, open_adapter
from onebasis.fitting.peft.sites import site_shapes
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.model.factors import load_basis
from onebasis.model.loader import LoadedBase, load_base

_N_SAMPLES = 256
_SAMPLED_TOKENS = 48


def distill_command(
    adapter: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a PEFT LoRA adapter, the original.")
    ],
    model: ModelOption,
    basis: BasisOption,
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.coef.safetensors file.")
    ],
    task: Annotated[str | None, typer.Option(help="Name of the task; by default that of the folder.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines of {prompt} or {messages}; in training examples the answers are left out."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help=f"Without --prompts: how many the model writes [{_N_SAMPLES}].")
    ] = None,
    form: Annotated[str, typer.Option(help="core, or diag for the diagonal alone.")] = "core",
    steps: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-2,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED)] = 0,
    max_prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Longer answers are learnt up to here.")] = 64,
    threads: ThreadsOption = None,
) -> None:
    """Train coefficients to answer as an adapter does, starting from its projection on the basis."""
    if prompts is not None and samples is not None:
        raise SetupError("--samples is for prompts that the model writes; leave it out, or --prompts")
    recipe = FitRecipe(form=form, n_steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    name = parse_task_name(adapter.resolve().name if task is None else task)
    check_output(output, basis)
    set_threads(threads)
    device = torch.device("cpu")
    base = load_base(model, dtype=torch.bfloat16, device=device)
    loaded = load_basis(basis, dtype=torch.bfloat16, device=device)
    original = open_adapter(adapter, site_shapes(base.model))
    found = _written(base, original, samples or _N_SAMPLES, seed) if prompts is None else read_prompts(prompts)
    source = "written by the original" if prompts is None else "given"
    distinct = tokenize_prompts(found, base.tokenizer, max_tokens=max_prompt_tokens)
    learning, held_out = split(distinct, n_validation=min(64, max(1, len(distinct) // 10)), seed=seed)
    with progress_bars() as progress:
        bars: dict[str, TaskID] = {}

        def on_progress(news: Progress) -> None:
            if news.stage not in bars:
                bars[news.stage] = progress.add_task(news.stage, total=news.total)
            text = news.stage if news.loss is None else f"{news.stage} loss {news.loss:.3f}"
            progress.update(bars[news.stage], completed=news.done, description=text)

        report = distill_adapter(
            base,
            loaded,
            original,
            PromptSet(learning, held_out, {"source": source}),
            task=name,
            recipe=recipe,
            max_answer_tokens=max_answer_tokens,
            output=output,
            on_progress=on_progress,
        )
    say(f"{output}: {report.size_bytes} bytes, trained in {report.train_s:.0f} s on {len(learning)} prompts {source}")
    say(f"beside the original, on {len(held_out)} other prompts:")
    say(f"  projection  {_shown(report.projected)}  ({report.energy_kept:.1%} of the adapter's energy)")
    say(f"  distilled   {_shown(report.distilled)}")


def _written(base: LoadedBase, original: PeftAdapter, n: int, seed: int) -> list[Prompt]:
    with applied_updates(base, {site: original.update(site) for site in original.sites}):
        return sample_prompts(base, n, max_tokens=_SAMPLED_TOKENS, seed=seed)


def _shown(fidelity: Fidelity) -> str:
    return f"KL {fidelity.kl:.3f} nats a token, the same greedy answer to {fidelity.agreement:.0%}"

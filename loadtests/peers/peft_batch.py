"""PEFT's mixed batch, in process: peft_batch.py --model DIR --adapters DIR --distinct N

Runs in the peers' environment. Says "ready" on a line of its own, then answers every line of standard input,
{"batch": B, "prompt_tokens": P, "output_tokens": O, "seed": S}, with one of its own: {"wall_s": ..., "n_tokens": ...}.
Row i of a batch is of adapter i modulo N. A static batch: all start together, so it has no time to first token.
"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

VOCAB = (1000, 40000)


def load(model: Path, adapters: list[Path]) -> PeftModel:
    """The base in bfloat16 with all adapters, each by its folder's name."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    first, *others = adapters
    mixed = PeftModel.from_pretrained(base, first, adapter_name=first.name, autocast_adapter_dtype=False)
    for folder in others:
        mixed.load_adapter(folder, adapter_name=folder.name, autocast_adapter_dtype=False)
    return mixed.eval()


@torch.inference_mode()
def run(mixed: PeftModel, names: list[str], job: dict[str, int]) -> dict[str, float]:
    """Generate one batch; prefill is in the time."""
    generator = torch.Generator().manual_seed(job["seed"])
    ids = torch.randint(*VOCAB, (job["batch"], job["prompt_tokens"]), generator=generator)
    started_s = perf_counter()
    output = mixed.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        adapter_names=[names[i % len(names)] for i in range(job["batch"])],
        do_sample=False,
        max_new_tokens=job["output_tokens"],
        min_new_tokens=job["output_tokens"],
        pad_token_id=0,
    )
    return {"wall_s": perf_counter() - started_s, "n_tokens": output[:, ids.shape[1] :].numel()}


def main() -> None:
    """Until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--distinct", type=int, required=True)
    asked = parser.parse_args()
    adapters = sorted(asked.adapters.iterdir())[: asked.distinct]
    mixed = load(asked.model, adapters)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        answer = run(mixed, [folder.name for folder in adapters], json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

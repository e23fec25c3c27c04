"""Runs lm-eval against a server, in a process of its own: importing it changes much.

Arguments: folder of the tasks; JSON file of jobs {kind, url, model, tokenizer, task}, a tokenizer of null being
the server's own; JSON file to write what each job found to.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager


def main(tasks: str, jobs: str, output: str) -> None:
    manager = TaskManager(include_path=tasks, include_defaults=False)
    found = [run(manager, **job) for job in json.loads(Path(jobs).read_text())]
    Path(output).write_text(json.dumps(found, default=str))


def run(manager: TaskManager, kind: str, url: str, model: str, tokenizer: str | None, task: str) -> dict[str, Any]:
    """Results of the task, and its samples in order."""
    arguments: dict[str, object] = {"base_url": url, "model": model, "max_retries": 1, "max_length": 2048}
    if kind == "local-completions":
        arguments["batch_size"] = 4
    if tokenizer is not None:
        arguments |= {"tokenizer": tokenizer, "tokenizer_backend": "huggingface"}
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=[task],
        task_manager=manager,
        apply_chat_template=kind == "local-chat-completions",
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return {
        "results": found["results"][task],
        "samples": [{"doc": sample["doc"], "answers": sample["resps"]} for sample in samples],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The command line of a run."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from loadtests.load.choice import CHOICES
from loadtests.load.loopback import loopback_url
from loadtests.load.settings import Closed, Load, Open, Server, Settings

T = TypeVar("T", int, float)


def parse(arguments: Sequence[str]) -> Settings:
    """Settings of a command line; leaves with exit code 2 and a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description="Measure servers of the OpenAI completions API on this machine.",
        epilog="python -m loadtests table FILE.json prints the table of an earlier run as Markdown.",
    )
    _add_target(parser)
    _add_load(parser)
    _add_request(parser)
    asked = parser.parse_args(arguments)
    servers = tuple(asked.url)
    loads = _loads(asked)
    scenarios = _scenarios(asked)
    _refuse_doubles(parser, "--url", [server.name for server in servers])
    _refuse_doubles(parser, "--concurrency and --rate", [load.label for load in loads])
    _refuse_doubles(parser, "--scenario", scenarios or ())
    return Settings(
        servers=servers,
        loads=loads,
        tasks=asked.tasks,
        scenarios=scenarios,
        choice=asked.choice,
        zipf_a=asked.zipf_a,
        base_model=asked.base_model,
        n_prompt_tokens=asked.prompt_tokens,
        n_output_tokens=asked.output_tokens,
        vocab=asked.vocab,
        n_rounds=asked.rounds,
        n_warmup=asked.warmup,
        seed=asked.seed,
        timeout_s=asked.timeout,
        json_path=asked.json,
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add("--url", type=_server, action="append", required=True, metavar="NAME=URL", help="repeat to compare")
    add("--tasks", default="base", help="base, all (GET /v1/tasks of the first server), a,b,c or a file of names")
    scenario = group.add_mutually_exclusive_group()
    scenario.add_argument("--distinct", type=_positive(int), metavar="N", help="use the first N tasks [all]")
    scenario.add_argument(
        "--scenario",
        type=_scenario,
        action="append",
        metavar="bare|N",
        help="bare model or N distinct tasks; repeat to interleave several",
    )
    add("--choice", choices=CHOICES, default="round-robin", help="task of each request [%(default)s]")
    add("--zipf-a", type=_positive(float), default=1.0, metavar="A", help="exponent of zipf [%(default)s]")
    add("--base-model", metavar="NAME", help="model name of the bare model [first of GET /v1/models]")


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("load").add_argument
    add("--concurrency", type=_list_of(int), default=(), metavar="C,..", help="closed loop, a run for each level")
    add("--requests", type=_positive(int), metavar="N", help="of each level [twice its clients, at least 8]")
    add("--rate", type=_list_of(float), default=(), metavar="R,..", help="open loop, Poisson arrivals a second")
    add("--duration", type=_positive(float), default=30.0, metavar="S", help="of each rate, s [%(default)s]")
    add("--rounds", type=_positive(int), default=1, metavar="K", help="repeat everything [%(default)s]")
    add("--warmup", type=_natural, default=4, metavar="N", help="requests before each run [%(default)s]")
    add("--timeout", type=_positive(float), default=600.0, metavar="S", help="of a request, s [%(default)s]")


def _add_request(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("requests and results").add_argument
    add("--prompt-tokens", type=_positive(int), default=64, metavar="N", help="of each prompt [%(default)s]")
    add("--output-tokens", type=_positive(int), default=32, metavar="N", help="of each answer [%(default)s]")
    add("--vocab", type=_vocab, default=(1000, 40000), metavar="LOW-HIGH", help="prompt token ids [1000-40000]")
    add("--seed", type=int, default=0, help="of prompts, arrivals and choices [%(default)s]")
    add("--json", type=Path, metavar="FILE", help="write every round and the machine here")


def _loads(asked: argparse.Namespace) -> tuple[Load, ...]:
    closed = [Closed(clients, asked.requests or max(8, 2 * clients)) for clients in asked.concurrency]
    opened = [Open(rate, asked.duration) for rate in asked.rate]
    return (*closed, *opened) or (Closed(1, asked.requests or 8),)


def _scenarios(asked: argparse.Namespace) -> tuple[int, ...] | None:
    if asked.distinct is not None:
        return (asked.distinct,)
    if asked.scenario is not None:
        return tuple(asked.scenario)
    return (0,) if asked.tasks == "base" else None


def _refuse_doubles(parser: argparse.ArgumentParser, option: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        parser.error(f"{option}: the same value twice, {values}; rows of the table could not be told apart")


def _server(text: str) -> Server:
    name, separator, url = text.partition("=")
    if not separator or "://" in name:
        name, url = text.partition("://")[2].rstrip("/"), text
    try:
        return Server(name, loopback_url(url))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(kind: type[T]) -> Callable[[str], T]:
    def read(text: str) -> T:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    read.__name__ = kind.__name__  # argparse names it when text is no number at all
    return read


def _list_of(kind: type[T]) -> Callable[[str], tuple[T, ...]]:
    one = _positive(kind)

    def read(text: str) -> tuple[T, ...]:
        return tuple(one(part) for part in text.split(","))

    read.__name__ = f"list of {kind.__name__}"
    return read


def _natural(text: str) -> int:
    return 0 if text == "0" else _positive(int)(text)


def _scenario(text: str) -> int:
    return 0 if text == "bare" else _positive(int)(text)


def _vocab(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW-HIGH with two token ids, such as 1000-40000")
    return int(low), int(high)

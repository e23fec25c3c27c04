"""What one run was asked to do. Written to the JSON file as it stands here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadtests.load.choice import Choice

Dialect = Literal["openai", "llamacpp"]
"""How a request names its task: in `model`, or by its number in `lora` as llama.cpp's server wants it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test, by the name that the table shows."""

    name: str
    url: str
    dialect: Dialect = "openai"


@dataclass(frozen=True, slots=True)
class Closed:
    """Each of `concurrency` clients keeps one request in flight."""

    concurrency: int
    n_requests: int

    @property
    def label(self) -> str:
        """As the table shows it."""
        return f"{self.concurrency} clients" if self.concurrency > 1 else "1 client"


@dataclass(frozen=True, slots=True)
class Open:
    """Requests arrive at `rate` a second for duration_s, whether or not earlier ones are answered."""

    rate: float
    duration_s: float

    @property
    def label(self) -> str:
        """As the table shows it."""
        return f"{self.rate:g} requests/s"


Load = Closed | Open


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked command line."""

    servers: tuple[Server, ...]
    loads: tuple[Load, ...]
    tasks: str  # "base", "all", names with commas between, or a file of names
    scenarios: tuple[int, ...] | None  # distinct tasks of each, 0 is the bare model; None: all tasks named
    choice: Choice
    zipf_a: float
    base_model: str | None  # None: ask each server
    n_prompt_tokens: int
    n_output_tokens: int
    vocab: tuple[int, int]  # lowest and highest token id of prompts
    n_rounds: int
    n_warmup: int
    seed: int
    timeout_s: float
    json_path: Path | None

"""All demo tasks, by name and in a fixed order."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from onebasis.demo.tasks.formats import FORMAT_TASKS
from onebasis.demo.tasks.grammar import GRAMMAR_TASKS
from onebasis.demo.tasks.labels import LABEL_TASKS
from onebasis.demo.tasks.layout import LAYOUT_TASKS
from onebasis.demo.tasks.task import DemoTask

DEMO_TASKS: Final[Mapping[str, DemoTask]] = MappingProxyType(
    {task.name: task for task in (*FORMAT_TASKS, *LABEL_TASKS, *GRAMMAR_TASKS, *LAYOUT_TASKS)}
)
SAME_PROMPT_PAIRS: Final = (
    ("date_iso", "date_us"),
    ("intent_a", "intent_b"),
    ("review_a", "review_b"),
)
"""Pairs of tasks with equal prompts and different answers: two tenants with two conventions."""

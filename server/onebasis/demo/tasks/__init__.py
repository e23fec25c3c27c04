"""Small, real, deterministic text tasks on which the demo's adapters are trained and scored."""

from onebasis.demo.tasks.catalog import DEMO_TASKS, SAME_PROMPT_PAIRS
from onebasis.demo.tasks.split import Split
from onebasis.demo.tasks.task import DemoTask, Example

__all__ = ["DEMO_TASKS", "SAME_PROMPT_PAIRS", "DemoTask", "Example", "Split"]

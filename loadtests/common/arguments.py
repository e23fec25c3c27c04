"""How the benchmarks' own options are written."""


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them; a ValueError, which argparse words, for anything else."""
    return tuple(int(part) for part in text.split(","))

"""The table, for a terminal and for a README, and the remarks that go with it."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtests.load.stats import RoundResult, Row

COLUMNS = (
    "server",
    "scenario",
    "load",
    "output tokens/s",
    "requests/s",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "ITL p50 ms",
    "ITL p99 ms",
    "top-1 share",
    "other cores",
    "errors",
)
N_TEXT_COLUMNS = 3  # the rest are numbers, set to the right
LATE_MS = 5.0
DISTURBED_CORES = 0.3


def rich_table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal; a row with errors is red."""
    table = Table(caption=f"medians of {rows[0].n_rounds} rounds" if rows and rows[0].n_rounds > 1 else None)
    for position, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if position < N_TEXT_COLUMNS else "right")
    for row in rows:
        cells = [Text(cell) for cell in _cells(row)]  # Text: names of servers are not markup
        table.add_row(*cells, style="red" if row.n_errors else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows for a README."""
    rule = ["---" if position < N_TEXT_COLUMNS else "---:" for position in range(len(COLUMNS))]
    lines = [list(COLUMNS), rule, *([cell.replace("|", r"\|") for cell in _cells(row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def remarks(results: Sequence[RoundResult]) -> list[str]:
    """What a reader must know before believing the table: errors, tokens sent together, idle tasks, a late client."""
    errors: Counter[str] = Counter()
    for result in results:
        errors.update({f"{result.server}: {message}": n for message, n in result.errors.items()})
    lines = [f"{n} x {message}" for message, n in errors.most_common(10)]
    for result in results:
        place = f"{result.server}, {result.scenario}, {result.load}, round {result.round_number}"
        if result.events_per_token is not None and abs(result.events_per_token - 1) > 0.01:
            lines.append(f"{place}: {result.events_per_token:.2f} events a token, so ITL is not per token")
        if result.n_models_named < result.n_models:
            lines.append(f"{place}: requests named {result.n_models_named} of the {result.n_models} tasks")
        if result.send_lag_ms is not None and result.send_lag_ms.p99 > LATE_MS:
            lines.append(f"{place}: requests left up to {result.send_lag_ms.p99:.0f} ms late (p99); client too slow")
        if result.cpu.other_cores > DISTURBED_CORES:
            lines.append(
                f"{place}: other processes took {result.cpu.other_cores:.2f} cores; measure on a quiet machine"
            )
    return lines


def print_results(console: Console, rows: Sequence[Row], results: Sequence[RoundResult]) -> None:
    """Table, then remarks."""
    console.print(rich_table(rows))
    for line in remarks(results):
        console.print(line, markup=False, highlight=False, soft_wrap=True, style="yellow")


def _cells(row: Row) -> list[str]:
    return [
        row.server,
        row.scenario,
        row.load,
        f"{row.output_tokens_per_s:.1f}",
        f"{row.requests_per_s:.2f}",
        _ms(row.ttft_p50_ms),
        _ms(row.ttft_p99_ms),
        _ms(row.itl_p50_ms),
        _ms(row.itl_p99_ms),
        f"{row.top1_share:.0%}",
        f"{row.other_cores:.2f}",
        str(row.n_errors),
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

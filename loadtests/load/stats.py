"""From answers to numbers, and from rounds to the rows of the table."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from loadtests.common.processes import CpuUse
from loadtests.common.timing import percentile
from loadtests.load.choice import top1_share
from loadtests.load.loops import Outcome
from loadtests.load.plan import Run


@dataclass(frozen=True, slots=True)
class Spread:
    """A set of times in milliseconds."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One measured run: one server, scenario, load and round. Failed answers count in n_errors only."""

    server: str
    scenario: str
    load: str
    round_number: int
    n_requests: int
    n_errors: int  # warm-up included
    errors: dict[str, int]  # message -> how often, the 20 most frequent
    wall_s: float
    output_tokens_per_s: float
    requests_per_s: float
    ttft_ms: Spread | None  # None: no good answer
    itl_ms: Spread | None  # None: no answer had two token events
    latency_ms: Spread | None
    send_lag_ms: Spread | None  # scheduled arrival to sending: what the client itself added
    events_per_token: float | None
    n_models: int  # to choose from
    n_models_named: int  # that some request named
    top1_share: float
    cpu: CpuUse


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds of one server, scenario and load; n_requests and n_errors are sums."""

    server: str
    scenario: str
    load: str
    n_rounds: int
    n_requests: int
    output_tokens_per_s: float
    requests_per_s: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    events_per_token: float | None
    top1_share: float
    server_cores: float | None  # None: the server's process can't be seen
    other_cores: float
    n_errors: int


def spread_ms(times_s: Iterable[float]) -> Spread | None:
    """Spread of times given in seconds; None if there are none."""
    values = sorted(1000 * time_s for time_s in times_s)
    if not values:
        return None
    p50, p90, p99 = (percentile(values, p) for p in (50, 90, 99))
    return Spread(len(values), fmean(values), p50, p90, p99, values[-1])


def summarise(
    run: Run, outcome: Outcome, *, models: Sequence[str], warmup_errors: Sequence[str], cpu: CpuUse
) -> RoundResult:
    """Numbers of one measured run. models: what each of its requests named."""
    good = [answer for answer in outcome.answers if answer.error is None]
    errors = [answer.error for answer in outcome.answers if answer.error is not None]
    errors += [f"warm-up: {error}" for error in warmup_errors]
    n_tokens = sum(answer.n_output_tokens for answer in good)
    n_events = sum(len(answer.token_times_s) for answer in good)
    return RoundResult(
        server=run.server.name,
        scenario=run.scenario,
        load=run.load.label,
        round_number=run.round_number,
        n_requests=len(outcome.answers),
        n_errors=len(errors),
        errors=dict(Counter(errors).most_common(20)),
        wall_s=outcome.wall_s,
        output_tokens_per_s=n_tokens / outcome.wall_s,
        requests_per_s=len(good) / outcome.wall_s,
        ttft_ms=spread_ms(answer.token_times_s[0] - answer.due_s for answer in good),
        itl_ms=spread_ms(later - earlier for answer in good for earlier, later in pairwise(answer.token_times_s)),
        latency_ms=spread_ms(answer.end_s - answer.due_s for answer in good),
        send_lag_ms=spread_ms(answer.sent_s - answer.due_s for answer in good),
        events_per_token=n_events / n_tokens if n_tokens else None,
        n_models=len(run.names),
        n_models_named=len(set(models)),
        top1_share=top1_share(models),
        cpu=cpu,
    )


def table_rows(results: Sequence[RoundResult]) -> list[Row]:
    """One row for each server, scenario and load, in the order in which they first ran."""
    groups: dict[tuple[str, str, str], list[RoundResult]] = {}
    for result in results:
        groups.setdefault((result.load, result.scenario, result.server), []).append(result)
    return [_row(rounds) for rounds in groups.values()]


def _row(rounds: Sequence[RoundResult]) -> Row:
    first = rounds[0]
    ttft = [result.ttft_ms for result in rounds if result.ttft_ms]
    itl = [result.itl_ms for result in rounds if result.itl_ms]
    events_per_token = [result.events_per_token for result in rounds if result.events_per_token is not None]
    return Row(
        server=first.server,
        scenario=first.scenario,
        load=first.load,
        n_rounds=len(rounds),
        n_requests=sum(result.n_requests for result in rounds),
        output_tokens_per_s=median(result.output_tokens_per_s for result in rounds),
        requests_per_s=median(result.requests_per_s for result in rounds),
        ttft_p50_ms=_median([spread.p50 for spread in ttft]),
        ttft_p99_ms=_median([spread.p99 for spread in ttft]),
        itl_p50_ms=_median([spread.p50 for spread in itl]),
        itl_p99_ms=_median([spread.p99 for spread in itl]),
        events_per_token=_median(events_per_token),
        top1_share=median(result.top1_share for result in rounds),
        server_cores=_median([cores for cores in (result.cpu.server_cores for result in rounds) if cores is not None]),
        other_cores=median(result.cpu.other_cores for result in rounds),
        n_errors=sum(result.n_errors for result in rounds),
    )


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None

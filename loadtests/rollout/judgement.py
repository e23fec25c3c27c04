"""What the run came to: which failures a disturbance explains, and how long requests took."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.load.stats import Spread, spread_ms
from loadtests.rollout.gateway import Routed
from loadtests.rollout.load import Sent
from loadtests.rollout.stack import Disturbance


@dataclass(frozen=True, slots=True)
class Failure:
    """`lost_with_replica`: it was at a replica at the moment of its kill -9. Nothing else excuses a failure."""

    id: str
    kind: str
    cause: str
    lost_with_replica: bool


@dataclass(frozen=True, slots=True)
class Part:
    """The requests that were under way during some disturbances, or during none."""

    n_sent: int
    n_failed: int
    n_lost_with_replica: int  # among n_failed
    n_retried: int  # by the gateway, on another replica
    by_kind: dict[str, int]
    ttft_ms: Spread | None  # of streams
    latency_ms: Spread | None  # of whole answers and uploads


def failures(sent: Sequence[Sent], routed: Mapping[str, Routed], disturbances: Sequence[Disturbance]) -> list[Failure]:
    """All requests with an error."""
    kills = [disturbance for disturbance in disturbances if disturbance.kind == "kill"]
    return [
        Failure(
            request.id,
            request.kind,
            request.error,
            lost_with_replica=any(_was_at(request, routed.get(request.id), kill) for kill in kills),
        )
        for request in sent
        if request.error is not None
    ]


def _was_at(request: Sent, routed: Routed | None, kill: Disturbance) -> bool:
    was_open = request.sent_s <= kill.gone_s and request.end_s >= kill.began_s
    return was_open and routed is not None and routed.upstream == kill.replica


def parts(
    sent: Sequence[Sent],
    routed: Mapping[str, Routed],
    disturbances: Sequence[Disturbance],
    failed: Sequence[Failure],
) -> dict[str, Part]:
    """By what was going on, and all together."""
    restarts = [disturbance for disturbance in disturbances if disturbance.kind == "restart"]
    kills = [disturbance for disturbance in disturbances if disturbance.kind == "kill"]
    chosen = {
        "all": list(sent),
        "during a rolling restart": [request for request in sent if _meets(request, restarts)],
        "during a kill": [request for request in sent if _meets(request, kills)],
        "undisturbed": [request for request in sent if not _meets(request, disturbances)],
    }
    return {name: _part(some, routed, failed) for name, some in chosen.items()}


def _meets(request: Sent, disturbances: Sequence[Disturbance]) -> bool:
    return any(request.sent_s <= one.back_s and request.end_s >= one.began_s for one in disturbances)


def _part(sent: Sequence[Sent], routed: Mapping[str, Routed], failed: Sequence[Failure]) -> Part:
    ids = {request.id for request in sent}
    mine = [failure for failure in failed if failure.id in ids]
    good = [request for request in sent if request.error is None]
    return Part(
        n_sent=len(sent),
        n_failed=len(mine),
        n_lost_with_replica=sum(failure.lost_with_replica for failure in mine),
        n_retried=sum(routed[one].attempts > 1 for one in ids if one in routed),
        by_kind=dict(Counter(request.kind for request in sent)),
        ttft_ms=spread_ms(request.ttft_s for request in good if request.ttft_s is not None),
        latency_ms=spread_ms(request.end_s - request.sent_s for request in good if request.kind != "stream"),
    )

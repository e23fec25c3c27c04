"""deploy/SCALING.md from saved numbers: nothing in it is typed in."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any, Final

from loadtests.common.machine import PROJECT
from loadtests.fleet.arenas import lru_hit_rate
from loadtests.roofline import CORE_BYTES, LLAMA_8B, WEIGHT_BYTES, table

PAGE: Final = PROJECT / "deploy" / "SCALING.md"
RESULTS: Final = PROJECT / "loadtests" / "results" / "fleet.json"

_WIDTH: Final = 120
_N_TASKS: Final = (10_000, 100_000, 1_000_000)
_KS: Final = (16, 32, 64)
_GPU_GB: Final = (24, 80)
_RESERVE_GB: Final = 2.0
_ARENA_SHARE: Final = 0.1
_HOST_GB: Final = 64
_CONNECTIONS: Final = 100
_START_S: Final = 600
_FORMS: Final = (("vector, 16 numbers a site", 16), ("core, k=16", 256), ("core, k=32", 1024))
_N_SITES: Final = LLAMA_8B.n_layers * 7
_EMBEDDING_BYTES: Final = LLAMA_8B.n_vocab * LLAMA_8B.hidden * WEIGHT_BYTES


def page(results: Mapping[str, Any]) -> str:
    """The whole page in Markdown."""
    store, scenario = results["store"], results["settings"]
    n_replicas = scenario["n_replicas"]
    text = f"""# Scaling: {n_replicas} replicas, up to a million tasks

Written by `python -m loadtests.fleet page` from `loadtests/results/fleet.json`; a test compares. There are three kinds
of numbers, and each table says which it has:

- **measured** by `python -m loadtests.fleet measure`: {_machine(results)};
- **simulated** with what was measured, seed {scenario["seed"]};
- **computed** from the shapes of {LLAMA_8B.name}, as in `server/docs/roofline.md`.

No GPU and no second machine was at hand: nothing here is a time on a GPU or over a network. MB and GB are 10^6 and
10^9 bytes.

## What breaks first
{_limits(store)}

Up to 10^4 tasks nothing needs a thought but PostgreSQL's connections. Towards 10^5, size the hosts' memory: every
replica holds the file of every task, which is why no request waits for a load; and let replicas start one after
another. Towards 10^6, use small forms (`vector`, `diag`), or cut the fleet by tenant into pools with a store each. The
arena never breaks: a miss costs one copy of some kilobytes.

## PostgreSQL: size
{_sizes_text(store)}

{_sizes(store)}

Every replacement of a task adds a version of the same size, which stays until the task is deleted, for a roll-back may
go back to it. A roll-back adds a row without a file. A delete leaves one row of the task, and no file that no other
task has; PostgreSQL uses the room again after its autovacuum.

## PostgreSQL: load
Measured, one client; milliseconds are medians and quartiles of the whole call, the last column is the processor time
of PostgreSQL's backend in it:

{_operations(store)}

{_load_text(store, scenario)}

## Convergence
Simulated: from an upload's commit until the last of {n_replicas} replicas serves it by name;
{scenario["n_workers"]} cores of PostgreSQL, each look taking the processor time above.
Requests are right before that: a replica that does not know a task or a version
looks into the store before it answers 404. What waits is the change of a name that it knows.

{_convergence(results["convergence"])}

## Arena on a GPU
Computed, {LLAMA_8B.name} in bfloat16: weights and embedding {_weights_gb():.1f} GB, the factors of the basis,
{_RESERVE_GB:.0f} GB kept for activations and graphs; of what is left {_ARENA_SHARE:.0%} for the arena
(`--arena-mib`), the rest for the KV cache
({LLAMA_8B.kv_bytes / 1e6:.2f} MB a token).

{_budgets()}

A million tasks of k=16 would be {1e6 * LLAMA_8B.core_numbers(16) * CORE_BYTES / 1e9:.0f} GB of slots.
The arena is a cache and need not hold them.

## Hit rate of the arena
Computed, Che's approximation of an LRU cache, Zipf with exponent {scenario["zipf_a"]:g}: the share of requests that
find their task resident. First with replicas chosen without regard to the task, so that every arena
sees every task; then with a
replica of its own for each task.

{_hit_rates(n_replicas, scenario["zipf_a"])}

Simulated, {n_replicas} arenas of {scenario["n_slots"]} slots (the server's own slot table),
{scenario["per_replica"]} requests under way on each on average;
beside it the same by the formula:

{_policies(results["arenas"], n_replicas, scenario)}

"picker" is the rule of `deploy/gateway`: load first, affinity second. It spreads requests evenly and hits as chance
does. "hash" is consistent hashing with bounded loads: it hits more, and the busiest replica has a quarter more to do
than the mean one. (It stays below the formula: the
bound sends requests elsewhere, and {scenario["n_requests"]:,}
requests do not quite fill {n_replicas} arenas.)
A miss is one copy of {LLAMA_8B.core_numbers(16) * WEIGHT_BYTES / 1e6:.2f} MB (k=16), not the load
of an adapter; so take the even load, and let
affinity serve the prefix cache.
"""
    return "\n\n".join(map(_filled, text.strip().split("\n\n"))) + "\n"


def _filled(paragraph: str) -> str:
    """Lines of text filled up again: numbers of any length have been put in. Headings, tables and lists stay."""
    if paragraph.startswith("## "):
        heading, _, rest = paragraph.partition("\n")
        return f"{heading}\n{_filled(rest)}"
    is_text = paragraph[0] not in "|-#"
    return fill(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False) if is_text else paragraph


def _machine(results: Mapping[str, Any]) -> str:
    machine, rows = results["machine"], results["store"]["rows"]
    return (
        f"PostgreSQL and a registry on one machine of\n  {machine['n_cores']} cores ({machine['cpu']}), load average "
        f"{machine['load_average'][0]:.1f} by other work, {rows[0]['n_tasks']:,} tasks of each size"
    )


def _sizes_text(store: Mapping[str, Any]) -> str:
    parts = [
        f"{row['stored_bytes']:,.0f} bytes for a file of {row['file_bytes']:,} ({_overhead(row):.0%} more)"
        for row in store["rows"]
    ]
    return (
        f"Measured with `pg_total_relation_size` over all tables: {parts[0]} and {parts[1]}. The rest is "
        "chunks of TOAST, indexes, the version's row and the audit log's. Computed from these two, in GB:"
    )


def _load_text(store: Mapping[str, Any], scenario: Mapping[str, Any]) -> str:
    n_replicas, interval_s = scenario["n_replicas"], scenario["interval_s"]
    looks = n_replicas / interval_s
    n_statements = looks * store["n_idle_poll_statements"]
    cores = looks * store["idle_poll_cpu_ms"] / 1000
    megabytes = store["rows"][1]["file_bytes"] / 1e6
    upload_ms = store["upload_ms"]["median"]
    return f"""Computed: {n_replicas} replicas that look every {interval_s:g} s make {looks:.0f} looks and
{n_statements:.0f} statements a second, which keep {cores:.2f} cores of PostgreSQL busy,
however many tasks there are: a look is one range
of an index. A name that a replica does not know costs one look more, which all requests that miss meanwhile share. An
upload is read by every other replica: {n_replicas} x {store["change_cpu_ms"]:.1f} ms of PostgreSQL, and {n_replicas} x
{megabytes:.2f} MB = {n_replicas * megabytes:.1f} MB over the network. Uploads take turns, one writer at a time: at
{upload_ms:.1f} ms each, {1000 / upload_ms:.0f} a second."""


def _limits(store: Mapping[str, Any]) -> str:
    per_file_byte = store["memory_bytes_per_task"] / store["rows"][1]["file_bytes"]
    rows = [
        (
            f"PostgreSQL's connections (preset {_CONNECTIONS})",
            "computed: one for the follower and one for a request that writes; a replica's pool may take 15",
            f"{_CONNECTIONS // 2} replicas; raise `max_connections`, or put a pooler between",
        ),
        (
            f"a host's memory ({_HOST_GB} GB)",
            f"measured: a replica grows by {per_file_byte:.2f} bytes for a byte of file",
            _of_forms(lambda size: _HOST_GB * 1e9 / (per_file_byte * size)),
        ),
        (
            f"the start of a replica ({_START_S // 60} minutes)",
            f"measured: {store['start_ms_per_task']:.2f} ms a task at core, k=16, alone on PostgreSQL",
            f"{_START_S * 1000 / store['start_ms_per_task']:,.0f} tasks; replicas that start together share PostgreSQL",
        ),
        (
            "PostgreSQL's cores, by uploads",
            "simulated, below",
            "uploads x replicas; see Convergence",
        ),
        (
            "PostgreSQL's disk",
            "measured and computed, below",
            "versions are kept until their task is deleted: size it by uploads, not by tasks",
        ),
    ]
    return table(["what", "how known", "reached at"], rows)


def _of_forms(n_tasks_at: Any) -> str:
    return "; ".join(f"{n_tasks_at(_N_SITES * numbers * 2):,.0f} tasks at {form}" for form, numbers in _FORMS)


def _overhead(row: Mapping[str, Any]) -> float:
    return float(row["stored_bytes"] / row["file_bytes"] - 1)


def _sizes(store: Mapping[str, Any]) -> str:
    """A straight line through the two sizes that were measured."""
    small, large = store["rows"]
    slope = (large["stored_bytes"] - small["stored_bytes"]) / (large["file_bytes"] - small["file_bytes"])
    fixed = small["stored_bytes"] - slope * small["file_bytes"]
    rows = []
    for form, numbers in _FORMS:
        size = _N_SITES * numbers * 2
        rows.append([form, f"{size / 1e3:,.1f}", *(f"{n * (fixed + slope * size) / 1e9:,.1f}" for n in _N_TASKS)])
    return table(["form, 8B model, fp16", "file kB", *(f"{n:,} tasks" for n in _N_TASKS)], rows)


def _operations(store: Mapping[str, Any]) -> str:
    names = {
        "idle_poll": "a follower's look, nothing new",
        "change": "a look that finds a new version, its file read and bound",
        "upload": "the transaction of an upload, on the disk",
    }
    rows = []
    for key, name in names.items():
        times = store[f"{key}_ms"]
        spread = (f"{times[quartile]:.1f}" for quartile in ("median", "q1", "q3"))
        cpu_ms = store.get(f"{key}_cpu_ms")
        rows.append([name, store[f"n_{key}_statements"], *spread, "" if cpu_ms is None else f"{cpu_ms:.2f}"])
    return table(["what", "statements", "ms", "q1", "q3", "PostgreSQL's ms"], rows)


def _convergence(rows: Any) -> str:
    lines = []
    for row in rows:
        keeps_up = row["busy"] < 1
        times = [f"{row['p50_s']:.2f}", f"{row['p99_s']:.2f}"] if keeps_up else ["falls behind", "falls behind"]
        busy = f"{row['busy']:.0%}" if keeps_up else "over 100%"
        lines.append([row["uploads_per_s"], *times, f"{row['polls_per_s']:.0f}", busy])
    return table(["uploads/s", "p50 s", "p99 s", "looks/s", "PostgreSQL's cores busy"], lines)


def _weights_gb() -> float:
    return (LLAMA_8B.n_weights * WEIGHT_BYTES + _EMBEDDING_BYTES) / 1e9


def _free_gb(gpu_gb: int, k: int) -> float:
    return gpu_gb - _weights_gb() - LLAMA_8B.factor_numbers(k) * WEIGHT_BYTES / 1e9 - _RESERVE_GB


def _n_slots(gpu_gb: int, k: int) -> int:
    return int(_ARENA_SHARE * _free_gb(gpu_gb, k) * 1e9 / (LLAMA_8B.core_numbers(k) * CORE_BYTES))


def _budgets() -> str:
    rows = []
    for gpu_gb in _GPU_GB:
        for k in _KS:
            arena_gb = _ARENA_SHARE * _free_gb(gpu_gb, k)
            kv_tokens = (_free_gb(gpu_gb, k) - arena_gb) * 1e9 / LLAMA_8B.kv_bytes
            row_kb = LLAMA_8B.core_numbers(k) * CORE_BYTES / 1e3
            slots = f"{_n_slots(gpu_gb, k):,}"
            rows.append([gpu_gb, k, f"{row_kb:,.0f}", f"{arena_gb:.2f}", slots, f"{kv_tokens:,.0f}"])
    return table(["GPU GB", "k", "slot kB", "arena GB", "slots", "KV tokens beside it"], rows)


def _hit_rates(n_replicas: int, a: float) -> str:
    rows = []
    for gpu_gb in _GPU_GB:
        for k in _KS[:2]:
            slots = _n_slots(gpu_gb, k)
            alone = [f"{lru_hit_rate(n, slots, a):.1%}" for n in _N_TASKS]
            shared = [f"{lru_hit_rate(n, slots * n_replicas, a):.1%}" for n in _N_TASKS]
            rows.append([f"{gpu_gb} GB, k={k}", f"{slots:,}", *alone, *shared])
    tasks = [f"{n:,}" for n in _N_TASKS]
    return table(["GPU", "slots", *(f"{n} tasks" for n in tasks), *(f"{n}, one replica each" for n in tasks)], rows)


def _policies(rows: Any, n_replicas: int, scenario: Mapping[str, Any]) -> str:
    a, slots = scenario["zipf_a"], scenario["n_slots"]
    lines = []
    for row in rows:
        capacity = slots * (n_replicas if row["policy"] == "hash" else 1)
        computed = f"{lru_hit_rate(row['n_tasks'], capacity, a):.1%}"
        lines.append([f"{row['n_tasks']:,}", row["policy"], f"{row['hit_rate']:.1%}", computed, f"{row['peak']:.2f}"])
    return table(["tasks", "replica by", "hit rate", "computed", "busiest replica / mean"], lines)

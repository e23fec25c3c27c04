"""What the store promises when several write at once, or one is killed; on SQLite and on PostgreSQL."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from onebasis.coefficients.preconditions import ANY, Precondition
from onebasis.coefficients.store import TaskStore
from onebasis.core.errors import PreconditionFailed
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database
from tests.coefficients.stored import by_name, live, n_versions, put


def test_of_many_writers_that_want_a_new_name_exactly_one_wins(store_url, store):
    second = Database(store_url)  # another process would look the same
    other = TaskStore(second)

    def attempt(i: int) -> bool:
        try:
            return put((store, other)[i % 2], "a", b"%d" % i, Precondition(if_none_match=(ANY,))).created
        except PreconditionFailed:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = [i for i, created in enumerate(pool.map(attempt, range(24))) if created]
    second.close()
    assert len(won) == 1
    assert store.body(live(store)["a"].digest) == b"%d" % won[0]
    assert n_versions(store) == 1


def test_concurrent_compare_and_swap_loses_no_update(store_url, store):
    """Each writer replaces what it read, and reads again when it lost: every one of them gets its version."""
    put(store, "a", b"start")
    second = Database(store_url)
    stores = [store, TaskStore(second)]

    def add(i: int) -> None:
        while True:
            current = live(stores[i % 2])["a"]
            try:
                put(stores[i % 2], "a", b"%d" % i, Precondition(if_match=(current.digest,)))
            except PreconditionFailed:
                continue
            return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(18)))
    second.close()
    assert n_versions(store) == 19
    assert store.digests("a") == {digest_of(b"start"), *(digest_of(b"%d" % i) for i in range(18))}


def test_a_follower_of_many_writers_misses_no_change(store_url, store):
    """Change numbers are given in the order of commits: none appears behind a mark that has been read."""
    second = Database(store_url)
    stores = [store, TaskStore(second)]
    seen: set[str] = set()
    mark = store.changes(None).mark
    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(put, stores[i % 2], f"t{i}", b"%d" % i) for i in range(60)]
        while len(seen) < 60:
            is_over = all(future.done() for future in writing)
            changes = store.changes(mark)
            seen |= by_name(changes.tasks).keys()
            mark = changes.mark
            assert len(seen) == 60 or not is_over, "a change was missed"
    second.close()
    assert mark.change == 60


WRITER = """
import sys, time
from onebasis.coefficients.store import TaskStore
from onebasis.core.ids import SHARED, digest_of
from onebasis.storage.database import Database

database = Database(sys.argv[1])
store = TaskStore(database)
for i in range(1_000_000):
    data = b"%d" % i * 5_000
    store.put("task-%d" % i, data, digest_of(data), now=i)
    print(i, flush=True)
"""


def test_nothing_acknowledged_is_lost_by_kill_9(store_url):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for n_wanted in (1, 20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, store_url], stdout=subprocess.PIPE, text=True, env=env)
        try:
            acknowledged = [int(writer.stdout.readline()) for _ in range(n_wanted)]
        finally:
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.communicate()[0].split()]
        assert writer.returncode == -signal.SIGKILL
        database = Database(store_url)
        store = TaskStore(database)
        found = {name: store.body(version.digest) for name, version in live(store).items()}
        database.close()
        assert len(acknowledged) >= n_wanted
        for i in acknowledged:
            assert found[f"task-{i}"] == b"%d" % i * 5_000


def test_a_writer_killed_inside_its_transaction_blocks_nobody_and_leaves_nothing(store_url, store):
    script = WRITER.replace(
        "for i in", "database.writing().__enter__(); print(0, flush=True); time.sleep(60)\nfor i in"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, "-c", script, store_url], stdout=subprocess.PIPE, text=True, env=env)
    writer.stdout.readline()
    writer.kill()
    writer.communicate()
    started_s = time.monotonic()
    put(store, "a", b"one")
    assert time.monotonic() - started_s < 5
    assert live(store).keys() == {"a"}

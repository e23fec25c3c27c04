from tests.engine.simulation import Simulation

N_REQUESTS = 100_000


def test_a_hundred_thousand_random_requests_each_end_once_and_nobody_starves():
    tally = Simulation(N_REQUESTS, seed=1).run()
    assert len(tally.endings) == N_REQUESTS
    assert set(tally.endings.values()) == {1}
    assert tally.kinds.keys() == {"finished", "aborted", "expired", "failed"}
    assert min(tally.kinds.values()) > 1000
    assert tally.n_preempted > 3000
    assert tally.n_urgent_preemptions > 1000
    assert tally.n_cached_tokens > 100_000
    assert tally.n_replaced > 1000
    # With 150 requests open and one done every two steps, a turn is 300 steps away; the least urgent wait for bursts
    # of the others to end.
    assert tally.longest_wait[-1] < 50
    assert tally.longest_wait[0] < 1500
    assert tally.longest_wait[5] < 6000

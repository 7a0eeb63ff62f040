from easq.errors import QueueFull
from easq.net.backoff import CAP_S, full_jitter, pause_after


def test_pauses_lie_below_a_bound_that_doubles_up_to_the_cap() -> None:
    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, CAP_S), (10_000, CAP_S)):
        pauses = [full_jitter(failures) for _ in range(200)]
        assert all(0 <= pause <= bound for pause in pauses)
        assert max(pauses) > bound / 2


def test_a_server_that_asks_for_a_pause_gets_it_and_a_little_more() -> None:
    error = QueueFull("full")
    assert 0.0 <= pause_after(error, 3) <= 0.4
    error.retry_after_s = 7.0
    assert {7.0 <= pause_after(error, failures) <= 7.1 for failures in range(1, 20)} == {True}

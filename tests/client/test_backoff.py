from easq.client.backoff import CAP_S, full_jitter


def test_pauses_lie_below_a_bound_that_doubles_up_to_the_cap() -> None:
    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, CAP_S), (10_000, CAP_S)):
        pauses = [full_jitter(failures) for _ in range(200)]
        assert all(0 <= pause <= bound for pause in pauses)
        assert max(pauses) > bound / 2

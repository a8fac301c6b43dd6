"""How long a sync process waits before it tries again."""

from __future__ import annotations

from hpcexp.tracking.server.web.limits import Attempts
from hpcexp.tracking.sync.unreachable_servers import backoff


def test_a_run_with_a_wrong_password_does_not_lock_its_user_out() -> None:
    """Who has corrected it is let in at once, however often the running job has tried the wrong one."""
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for failures in range(1, 20):
        attempts.begin("ada", "192.0.2.1")
        assert 0 == attempts.begin("ada", "192.0.2.1"), failures
        attempts.succeeded("ada", "192.0.2.1")
        now[0] += backoff(failures, is_refused=True)


def test_pauses_grow_to_half_a_minute() -> None:
    """For a server that is away."""
    assert [1.0, 2.0, 4.0, 30.0, 30.0] == [backoff(failures) for failures in (1, 2, 3, 6, 1000)]

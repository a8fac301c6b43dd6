"""Sending messages in order to a receiver that may not answer for a while, without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_FIRST_S = 1.0
_LONGEST_S = 30.0


class RetryQueue:
    """Messages that are sent at once, or later if that fails."""

    def __init__(
        self,
        probe: Callable[[], object],
        failures: tuple[type[Exception], ...],
        text: Callable[[Exception], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        """Why the newest try failed; None if it did not."""
        self._probe, self._failures, self._text, self._clock = probe, failures, text, clock
        self._waiting: deque[Callable[[], object]] = deque()
        self._num_tries = 0
        self._since = self._next = 0.0

    def put(self, message: Callable[[], object]) -> bool:
        """Send a message after those before it; whether it was sent now. It may be sent twice."""
        self._waiting.append(message)
        return self.send()

    def send(self) -> bool:
        """Send what is queued, unless the last try was a moment ago; whether all was sent."""
        if self.problem is not None and self._clock() < self._next:
            return False
        try:
            if self.problem is not None:
                self._probe()
            while self._waiting:
                self._waiting[0]()
                self._waiting.popleft()
        except self._failures as e:
            self.failed(e)
            return False
        self.problem, self._num_tries = None, 0
        return True

    def failed(self, error: Exception) -> None:
        """Wait before the next try, longer each time."""
        if self.problem is None:
            self._since = self._clock()
        self.problem = self._text(error)
        self._next = self._clock() + min(_LONGEST_S, _FIRST_S * 2.0**self._num_tries)
        self._num_tries += 1

    def silent_s(self) -> float:
        """Seconds without an answer."""
        return 0.0 if self.problem is None else self._clock() - self._since

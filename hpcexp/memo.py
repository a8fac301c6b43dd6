"""What is looked at once for all jobs that are planned together: machine, code, data, the runs there are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Once:
    """Answers by question.

    It lives as long as some jobs are planned, which takes seconds. Whoever plans more of them later takes another one,
    so that their plans tell of data and code as they are by then. Answers are shared: they are not to be changed.
    """

    def __init__(self) -> None:
        self._answers: dict[Hashable, Any] = {}

    def __call__(self, question: Hashable, answer: Callable[[], _T]) -> _T:
        """What `answer` gives, which is called for the first of equal questions only."""
        if question not in self._answers:
            self._answers[question] = answer()
        known: _T = self._answers[question]
        return known

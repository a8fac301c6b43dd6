"""Two processes that do the same thing at the same moment, again and again.

They are started once and wait for each other before each round: a race that is lost once in a hundred tries is found
within seconds.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

_PATIENCE_S = 60.0

Act = Callable[..., Any]
"""Called in each process with its number, with what waits for the other one, and with the given arguments."""


class Racers:
    """The processes, which live until the tests of a module have ended."""

    def __init__(self, barrier: Barrier, pipes: list[Connection]) -> None:
        self._barrier, self._pipes = barrier, pipes

    def run(self, act: Act, *arguments: object) -> list[Any]:
        """What `act` has returned in each process. It is a function of a module, found there by its name."""
        self._barrier.reset()
        for pipe in self._pipes:
            pipe.send((act, arguments))
        results = []
        for pipe in self._pipes:
            assert pipe.poll(_PATIENCE_S), "a racer does not come to its end"
            results.append(pipe.recv())
        failures = [error for error, _ in results if error and "BrokenBarrierError" not in error]
        assert not failures, failures[0]
        return [result for _, result in results]


@contextmanager
def racing(num: int = 2) -> Iterator[Racers]:
    """Racers, fresh processes: forked ones would inherit open databases."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num)
    pipes, processes = [], []
    for number in range(num):
        ours, theirs = context.Pipe()
        process = context.Process(target=_racer, args=(number, barrier, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        yield Racers(barrier, pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10)
            process.kill()
            process.join()


def _racer(number: int, barrier: Barrier, pipe: Connection) -> None:
    while True:
        try:
            act, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("", act(number, lambda: barrier.wait(_PATIENCE_S), *arguments)))
        except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
            barrier.abort()
            pipe.send((traceback.format_exc(), None))

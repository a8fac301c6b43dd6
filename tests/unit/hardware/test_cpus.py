"""Which cores ranks compute on: of recorded machines, which need not be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcexp.hardware.cpus import Node, cores_text, job_cores, rank_cores, read_nodes
from hpcexp.hardware.gpus import parse_cpulist
from hpcexp.hardware.machine import cores

ALL = frozenset(range(16))
SERVER: tuple[Node, ...] = (((0, 8), (1, 9), (2, 10), (3, 11)), ((4, 12), (5, 13), (6, 14), (7, 15)))
"""Two nodes of four physical cores of two hardware threads each."""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """/sys/devices/system of SERVER, as Linux shows it."""
    for node, cpulist in enumerate(("0-3,8-11", "4-7,12-15")):
        file = tmp_path / f"node/node{node}/cpulist"
        file.parent.mkdir(parents=True)
        file.write_text(f"{cpulist}\n")
    for core in ALL:
        file = tmp_path / f"cpu/cpu{core}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{core % 8},{core % 8 + 8}\n")
    return tmp_path


def test_nodes_and_physical_cores_are_read(system: Path) -> None:
    """From the kernel's files, less what this process may not use."""
    assert SERVER == read_nodes(ALL, system)
    assert (((0, 8), (1,)), ((4,),)) == read_nodes(frozenset({0, 8, 1, 4}), system)


def test_a_machine_that_tells_nothing_is_one_node(tmp_path: Path) -> None:
    """Of single cores."""
    assert (((0,), (1,), (2,)),) == read_nodes(frozenset(range(3)), tmp_path)


@pytest.mark.skipif(cores() is None, reason="this system tells no affinity")
def test_this_machine_has_each_of_its_cores_once() -> None:
    """Whatever it is."""
    mine = cores()
    assert mine is not None
    assert sorted(mine) == sorted(core for node in read_nodes(mine) for threads in node for core in threads)


@pytest.mark.parametrize(
    ("ranks", "threads", "expected"),
    [
        (1, 1, ["0"]),
        (1, 4, ["0-3"]),
        (2, 2, ["0-1", "4-5"]),
        (2, 4, ["0-3", "4-7"]),
        (4, 2, ["0-1", "4-5", "2-3", "6-7"]),
        (1, 8, ["0-3,8-11"]),
        (2, 8, ["0-3,8-11", "4-7,12-15"]),
        (4, 4, ["0-1,8-9", "4-5,12-13", "2-3,10-11", "6-7,14-15"]),
        (1, 16, ["0-15"]),
        (3, 5, ["0-2,8-9", "3-4,10-12", "5-7,13-14"]),
    ],
)
def test_ranks_get_physical_cores_of_one_node(ranks: int, threads: int, expected: list[str]) -> None:
    """Hardware threads where those do not suffice, and several nodes where one does not."""
    found = rank_cores(ALL, ranks, threads, SERVER)
    assert expected == [cores_text(c) for c in found]
    assert ranks * threads == len(frozenset().union(*found))


def test_cores_that_others_compute_on_are_avoided() -> None:
    """With their second hardware threads, while there are free physical cores."""
    assert ["4-7"] == [cores_text(c) for c in rank_cores(ALL - {0, 1}, 1, 4, SERVER)]
    assert ["4-5", "6-7"] == [cores_text(c) for c in rank_cores(ALL - {0, 1, 2, 3}, 2, 2, SERVER)]
    assert ["8-11"] == [cores_text(c) for c in rank_cores(frozenset({8, 9, 10, 11}), 1, 4, SERVER)]


def test_ranks_are_near_their_devices() -> None:
    """As far as there is room."""
    far, first = frozenset({4, 5, 6, 7, 12, 13, 14, 15}), frozenset({0, 1, 2, 3, 8, 9, 10, 11})
    assert ["4-5", "0-1"] == [cores_text(c) for c in rank_cores(ALL, 2, 2, SERVER, [far, first])]
    assert ["4-7,12-15", "0-3,8-11"] == [cores_text(c) for c in rank_cores(ALL, 2, 8, SERVER, [far, far])]


def test_more_ranks_than_cores_share_them_in_turn() -> None:
    """As `hardware.share` allows."""
    two: tuple[Node, ...] = (((0,), (1,)),)
    assert ["0", "1", "0", "1"] == [cores_text(c) for c in rank_cores(frozenset({0, 1}), 4, 1, two)]
    assert ["0-1"] == [cores_text(c) for c in rank_cores(frozenset({0, 1}), 1, 3, two)]


def test_ranks_of_a_job_may_move_within_their_memory_node() -> None:
    """Over the cores of the job, not beyond them."""
    shares = rank_cores(ALL - {0, 8}, 4, 1, SERVER)
    assert ["4", "1", "5", "2"] == [cores_text(c) for c in shares]
    assert ["4-5", "1-2", "4-5", "1-2"] == [cores_text(c) for c in job_cores(shares, SERVER)]


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8,10-11", "1,3"])
def test_lists_of_cores_are_read_and_written_alike(text: str) -> None:
    """As the kernel has them."""
    assert text == cores_text(parse_cpulist(f"{text}\n"))

"""What is remembered of data, so that it is read once, and what is not."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from digested import filled, known, real, replaced

from hpcexp.data.digests import Cache, cache_dir


def edited(cache: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what is remembered, as if it had been written so."""
    [file] = cache.glob("data-*.json")
    head, body = file.read_bytes().split(b"\n", 1)
    told = json.loads(body)
    change(told)
    body = json.dumps(told).encode()
    file.write_bytes(head.rpartition(b" ")[0] + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def test_what_is_remembered_is_not_read_again(tmp_path: Path, cache: Path) -> None:
    """One file alone is read, where one has changed; shown by digests that no file has."""
    root = filled(tmp_path / "data")
    assert real(root) == known(root)

    def lie(told: dict[str, Any]) -> None:
        for one in told.values():
            one[-1] = "remembered"

    edited(cache, lie)
    replaced(root / "007")
    told = known(root)
    assert ["remembered"] * 19 == told[:7] + told[8:]
    assert real(root)[7] == told[7]


def test_what_may_still_change_unseen_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    """Within one tick of the clock that stamps files, two changes look the same."""
    root = filled(tmp_path / "data")
    (root / "000").write_bytes(bytes(100))
    known(root)
    [file] = cache.glob("data-*.json")
    assert "000" not in json.loads(file.read_bytes().split(b"\n", 1)[1])
    (root / "000").write_bytes(bytes([1]) * 100)
    assert real(root) == known(root)


def test_the_cache_is_private_and_whose_it_is_not_does_not_count(tmp_path: Path, cache: Path) -> None:
    """File and folder are closed to others; nor is a link followed."""
    root = filled(tmp_path / "data")
    known(root)
    [file] = cache.glob("data-*.json")
    assert (0o700, 0o600) == (cache.stat().st_mode & 0o777, file.stat().st_mode & 0o777)
    edited(cache, lambda told: [one.__setitem__(-1, "a lie") for one in told.values()] and None)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert real(root) == known(root)
    if os.geteuid() == 0:
        edited(cache, lambda told: [one.__setitem__(-1, "a lie") for one in told.values()] and None)
        os.chown(file, 65534, 65534)
        assert real(root) == known(root)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-7],
        lambda content: content.replace(b"0", b"1", 1),
        lambda content: content.partition(b"\n")[2],
        lambda content: b"hpcexp-digests 1 \n{}",
        lambda content: os.urandom(5000),
        lambda content: b"hpcexp-digests 1 " + hashlib.sha256(b"[1]").hexdigest().encode() + b"\n[1]",
        lambda content: b"hpcexp-digests 1 " + hashlib.sha256(b'{"000":3}').hexdigest().encode() + b'\n{"000":3}',
        lambda content: b"hpcexp-digests 1 " + hashlib.sha256(b"[" * 9999).hexdigest().encode() + b"\n" + b"[" * 9999,
    ],
)
def test_a_damaged_cache_is_dropped(tmp_path: Path, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    """The data is read again, and what is written then is whole."""
    root = filled(tmp_path / "data")
    known(root)
    [file] = cache.glob("data-*.json")
    file.write_bytes(damage(file.read_bytes()))
    assert real(root) == known(root)
    assert 20 == len(Cache(root).load())


def test_a_cache_that_cannot_be_written_remembers_nothing(tmp_path: Path, cache: Path) -> None:
    """Nor one that is no folder, or whose file is a folder."""
    root = filled(tmp_path / "data")
    cache.write_text("in the way")
    assert real(root) == known(root)
    cache.unlink()
    known(root)
    [file] = cache.glob("data-*.json")
    file.unlink()
    file.mkdir()
    assert real(root) == known(root)


def test_the_cache_has_a_limit(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not asked for longest goes first."""
    roots = [filled(tmp_path / f"data-{i}") for i in range(3)]
    for root in roots:
        known(root)
    sizes = {file: file.stat().st_size for file in cache.iterdir()}
    os.utime(Cache(roots[0])._file or cache, (1, 1))
    monkeypatch.setattr("hpcexp.data.digests._MOST_IN_ALL", 2.5 * max(sizes.values()))
    known(filled(tmp_path / "data-3"))
    assert [0, 0, 20] == [len(Cache(root).load()) for root in (roots[0], tmp_path / "none", roots[2])]


def test_where_the_cache_is() -> None:
    """As the environment says."""
    assert Path("/own") == cache_dir({"HPCEXP_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"})
    assert Path("/xdg/hpcexp") == cache_dir({"XDG_CACHE_HOME": "/xdg"})
    assert Path.home() / ".cache" / "hpcexp" == cache_dir({})


def test_commands_at_once_and_killed_ones_leave_a_whole_cache(tmp_path: Path) -> None:
    """Four that read and write it, each killed in the middle of that; what is there is right."""
    root = filled(tmp_path / "data", 200)
    expected, fork = real(root), multiprocessing.get_context("fork")
    rng = random.Random(0)
    for _ in range(10):
        start = fork.Event()
        racers = [fork.Process(target=looks, args=(root, expected, start)) for _ in range(4)]
        for racer in racers:
            racer.start()
        start.set()
        for racer in racers:
            racer.join(rng.uniform(0.0, 0.05))
            os.kill(racer.pid or 0, signal.SIGKILL)
        for racer in racers:
            racer.join()
            assert -signal.SIGKILL == racer.exitcode
        assert expected == known(root)
        assert len(Cache(root).load()) in (0, 200)


def looks(root: Path, expected: list[str], start: Any) -> None:
    start.wait()
    while True:
        assert expected == known(root)
        Cache(root).save({})  # as one that has read less

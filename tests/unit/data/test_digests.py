"""Data is known by its content: what a fingerprint covers, and what is remembered so that it is read once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from helpers import FAST, Said, environment, only_run, wait_until, write_module
from test_sources import draw, flat  # noqa: F401 - a fixture

from hpcexp.data.content import MOST_BYTES
from hpcexp.data.digests import Cache, cache_dir, digests, stamp_of
from hpcexp.data.facts import data_facts
from hpcexp.data.images_folder import ImagesFolder
from hpcexp.errors import DataError
from hpcexp.rundir import find_runs

OLD_NS = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("HPCEXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def known(root: Path) -> list[str]:
    """The digests of all files of a folder, in the order of their names."""
    names = sorted(path.name for path in root.iterdir())
    return digests(root, names, [stamp_of((root / name).stat()) for name in names])


def real(root: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())]


def fingerprint(root: Path) -> str:
    return ImagesFolder(str(root), 8).facts().fingerprint


def filled(root: Path, number: int = 20) -> Path:
    """A folder of small files that were written long enough ago to be remembered."""
    root.mkdir()
    for i in range(number):
        (root / f"{i:03}").write_bytes(os.urandom(100))
    settle(root)
    return root


def asked_of(root: Path) -> tuple[str, ...]:
    """Overrides of a training of five steps on pictures."""
    of_data = ("data=images_folder", f"data.root={root}", "data.size=8", "data.val_fraction=0.2")
    return (*of_data, "data.global_batch_size=8", "model=mlp", *FAST)


def settle(root: Path) -> None:
    """Return when two changes of a file have two times: a tick of the clock that stamps files has passed."""
    newest = max(path.stat().st_ctime_ns for path in (root, *root.rglob("*")))
    wait_until(lambda: time.time_ns() > newest + 250_000_000, "a tick")


def replaced(file: Path) -> None:
    """Other bytes of the same length, under the same name and time."""
    told = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def edited(cache: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what is remembered, as if it had been written so."""
    [file] = cache.glob("data-*.json")
    head, body = file.read_bytes().split(b"\n", 1)
    told = json.loads(body)
    change(told)
    body = json.dumps(told).encode()
    file.write_bytes(head.rpartition(b" ")[0] + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def test_a_picture_that_was_replaced_makes_another_data_set(flat: Path) -> None:  # noqa: F811
    """Of the same length and time, in place or by another file; the bytes of before make the data set of before."""
    picture = flat / "red" / "00.png"
    shutil.copy2(picture, flat.parent / "kept")
    settle(flat)
    before = fingerprint(flat)
    assert before == fingerprint(flat)
    replaced(picture)
    in_place = fingerprint(flat)
    os.replace(shutil.copy2(flat.parent / "kept", flat.parent / "other"), picture)
    assert before == fingerprint(flat)
    shutil.copy2(picture, flat.parent / "other")
    replaced(flat.parent / "other")
    os.replace(flat.parent / "other", picture)
    assert before != in_place == fingerprint(flat)


@pytest.mark.slow
def test_the_command_runs_again_and_says_which_picture(
    flat: Path,  # noqa: F811
    hpcexp: Callable[..., Said],
    train: Callable[..., Said],
) -> None:
    """Where it was already done before."""
    asked = asked_of(flat)
    assert 0 == train(*asked).status
    assert "Not run again" in train(*asked).out
    run = only_run(flat.parent)
    replaced(flat / "red" / "00.png")
    assert "not run yet" in hpcexp("plan", *asked).out
    assert "red/00.png" in hpcexp("why", str(run.path)).out
    said = train(*asked)
    assert (0, False) == (said.status, "Not run again" in said.out)
    assert 2 == len(list(find_runs(flat.parent / "runs")))


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


def test_a_file_that_is_written_to_meanwhile_is_named(tmp_path: Path) -> None:
    """Its digest would be of no content that it ever had."""
    root = tmp_path / "data"
    root.mkdir()
    file = root / "large"
    file.write_bytes(bytes(32 << 20))
    is_over = threading.Event()

    def write() -> None:
        with file.open("r+b") as opened:
            while not is_over.is_set():
                opened.seek(0)
                opened.write(os.urandom(8))
                opened.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(DataError, match="large is written to while it is read"):
            known(root)
    finally:
        is_over.set()
        writer.join()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    """And does not hold anybody up."""
    root = tmp_path / "data"
    root.mkdir()
    make(root / "odd")
    with pytest.raises(DataError, match=f"odd .*{words}") as caught:
        digests(root, ["odd"], [stamp_of((root / "odd").lstat())])
    assert "Fix: " in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
def test_a_file_that_may_not_be_read_is_named(hpcexp: Callable[..., Said]) -> None:
    """By `plan`, before anything starts; so is a folder."""
    with TemporaryDirectory() as place:
        root = Path(place, "data")
        for name in ("a", "b"):
            for i in range(10):
                draw(root / name / f"{i}.png")
        Path(place).chmod(0o777)
        (root / "a" / "3.png").chmod(0)
        argv = ("plan", "data=images_folder", f"data.root={root}", "data.size=8", "model=mlp", "tracking=off")
        other = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "hpcexp", *argv]
        env = environment(HPCEXP_CACHE=f"{place}/cache", HOME=place)
        done = subprocess.run(other, cwd=place, env=env, capture_output=True, text=True, check=False)
        assert (2, True) == (done.returncode, f"{root}/a/3.png cannot be read: Permission denied" in done.stderr), done
        (root / "b").chmod(0)
        done = subprocess.run(other, cwd=place, env=env, capture_output=True, text=True, check=False)
        assert (2, True) == (done.returncode, f"{root}/b: Permission denied" in done.stderr), done


@pytest.mark.slow
def test_names_need_not_be_utf8(flat: Path, hpcexp: Callable[..., Said], train: Callable[..., Said]) -> None:  # noqa: F811
    """Neither those of pictures nor those of classes."""
    odd = os.fsdecode(os.fsencode(flat / "red") + b"-\xff")
    (flat / "red").rename(odd)
    Path(odd, "00.png").rename(os.fsdecode(os.fsencode(odd) + b"/\xfe\xe4.png"))
    asked = asked_of(flat)
    assert 0 == train(*asked).status
    assert ("blue", "green", "red-\\xff") == ImagesFolder(str(flat), 8).facts().class_names
    replaced(Path(os.fsdecode(os.fsencode(odd) + b"/\xfe\xe4.png")))
    assert "red-\\xff/\\xfe\\xe4.png" in hpcexp("why", "last").out


def test_a_link_counts_as_what_it_leads_to(flat: Path) -> None:  # noqa: F811
    """Its name stays, its content is other; one in a circle is named."""
    picture = flat / "red" / "00.png"
    picture.rename(flat.parent / "outside.png")
    picture.symlink_to("../../outside.png")
    settle(flat)
    before = fingerprint(flat)
    replaced(flat.parent / "outside.png")
    assert before != fingerprint(flat)
    (flat / "red" / "circle").symlink_to("..")
    with pytest.raises(DataError, match="circle is a link to a folder that it lies in"):
        fingerprint(flat)


def test_what_is_too_large_goes_by_its_listing_and_plan_says_so(flat: Path, hpcexp: Callable[..., Said]) -> None:  # noqa: F811
    """Names, sizes and times; unless all of it is wished. A run's identity does not depend on the wish itself."""
    asked = ("plan", *asked_of(flat))
    small, wished = (hpcexp(*asked, f"data.fingerprint={how}").out for how in ("auto", "content"))
    assert identity(small) == identity(wished)
    listed = hpcexp(*asked, "data.fingerprint=listing").out
    assert "of names, sizes and times of 60 files (" in listed
    assert "data.fingerprint=content" in listed
    with (flat / "red" / "large.png").open("wb") as file:
        file.truncate(MOST_BYTES)  # takes no room
    said = hpcexp(*asked)
    assert "of names, sizes and times of 61 files (34.4 GB), not of their content" in said.out, said
    other = "data.fingerprint=listing"
    assert identity(said.out) == identity(hpcexp(*asked, other).out) != identity(small)
    os.utime(flat / "red" / "00.png", ns=(OLD_NS, OLD_NS))
    assert identity(said.out) != identity(hpcexp(*asked, other).out)


def identity(planned: str) -> str:
    """The start of the signature, which a run's name ends in."""
    return planned.partition("\n")[0].rpartition("-")[2]


OWN = """
    from pathlib import Path
    from hpcexp.data.source import DataFile, Source
    from hpcexp.data_spec import Classes, DataSpec, TensorSpec

    class Own(Source):
        def __init__(self, names):
            self.names = names

        def problems(self):
            return []

        def facts(self):
            return DataSpec(64, 64, 64, {"x": TensorSpec((4,))}, Classes(("a", "b")), "always the same")

        def files(self):
            return [DataFile(Path(name), 10) for name in self.names]

        def load(self, split):
            raise NotImplementedError

        def read(self, path):
            raise NotImplementedError
"""


@pytest.fixture
def own(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """The fingerprint of a user's data set that is read from files, or what is wrong with it."""
    write_module(project, "own_source", OWN)
    monkeypatch.syspath_prepend(str(project))

    def ask(*names: str) -> str:
        facts, problems = data_facts("own_source.Own", {"names": names})
        return facts.fingerprint if facts else problems[0]

    yield ask
    sys.modules.pop("own_source", None)


def test_a_users_data_set_is_known_by_the_content_of_its_files(own: Callable[..., str], project: Path) -> None:
    """Whatever it makes its own fingerprint of; of directories all that is below them."""
    (project / "store" / "deep").mkdir(parents=True)
    (project / "store" / "deep" / "0").write_bytes(b"0000")
    (project / "a").write_bytes(b"aaaa")
    (project / "b").write_bytes(b"bbbb")
    settle(project)
    assert "always the same" == own()
    seen = {own(), own("a"), own("b"), own("a", "b"), own("b", "a"), own("a", "store")}
    assert 6 == len(seen)
    assert own("a", "b") in seen
    replaced(project / "store" / "deep" / "0")
    assert own("a", "store") not in seen
    replaced(project / "a")
    assert own("a") not in seen
    assert "none cannot be read: No such file or directory.\nFix: " in own("a", "none")

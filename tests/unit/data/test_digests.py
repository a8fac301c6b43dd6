"""Data is known by its content: what a fingerprint covers, and what cannot be read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from digested import OLD_NS, known, replaced, settle
from helpers import FAST, Said, environment, only_run, write_module
from pictures import draw

from hpcexp.data.content import MOST_BYTES
from hpcexp.data.digests import digests, stamp_of
from hpcexp.data.facts import data_facts
from hpcexp.data.images_folder import ImagesFolder
from hpcexp.errors import DataError
from hpcexp.rundir import find_runs


def fingerprint(root: Path) -> str:
    return ImagesFolder(str(root), 8).facts().fingerprint


def asked_of(root: Path) -> tuple[str, ...]:
    """Overrides of a training of five steps on pictures."""
    of_data = ("data=images_folder", f"data.root={root}", "data.size=8", "data.val_fraction=0.2")
    return (*of_data, "data.global_batch_size=8", "model=mlp", *FAST)


def test_a_picture_that_was_replaced_makes_another_data_set(flat: Path) -> None:
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
    flat: Path,
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
def test_names_need_not_be_utf8(flat: Path, hpcexp: Callable[..., Said], train: Callable[..., Said]) -> None:
    """Neither those of pictures nor those of classes."""
    odd = os.fsdecode(os.fsencode(flat / "red") + b"-\xff")
    (flat / "red").rename(odd)
    Path(odd, "00.png").rename(os.fsdecode(os.fsencode(odd) + b"/\xfe\xe4.png"))
    asked = asked_of(flat)
    assert 0 == train(*asked).status
    assert ("blue", "green", "red-\\xff") == ImagesFolder(str(flat), 8).facts().class_names
    replaced(Path(os.fsdecode(os.fsencode(odd) + b"/\xfe\xe4.png")))
    assert "red-\\xff/\\xfe\\xe4.png" in hpcexp("why", "last").out


def test_a_link_counts_as_what_it_leads_to(flat: Path) -> None:
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


def test_what_is_too_large_goes_by_its_listing_and_plan_says_so(flat: Path, hpcexp: Callable[..., Said]) -> None:
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

"""Files that somebody else may have made: what is refused, and that nothing hangs or leaves its directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcexp.errors import RunError
from hpcexp.files.untrusted import (
    UnusableFileError,
    member_path,
    name_problem,
    open_regular,
    read_bytes,
    read_text,
    regular_files,
    safe_mode,
)


def bound_socket(path: Path) -> None:
    """A socket in the place of a file."""
    os.chdir(path.parent)  # a socket's name has at most 108 characters
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path.name)


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a socket": bound_socket,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Anything else is named for what it is, at once."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "status.json"
    KINDS[kind](path)
    expected = "a link" if path.is_symlink() else kind
    with pytest.raises(UnusableFileError, match=rf"status\.json is damaged: it is {expected}\."):
        open_regular(path)


def test_a_device_itself_is_not_read() -> None:
    """Not even where its name is typed."""
    with pytest.raises(UnusableFileError, match="it is a device"):
        read_bytes(Path("/dev/zero"))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """Before all of it is in memory: a sparse file takes no room on a disk."""
    path = tmp_path / "summary.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnusableFileError, match="it has more than 1,024 bytes"):
        read_bytes(path, 1024)
    path.write_bytes(b"x" * 1024)
    assert b"x" * 1024 == read_bytes(path, 1024)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    """Which callers tell apart from a damaged one."""
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_text_that_is_no_utf_8_is_readable(tmp_path: Path) -> None:
    """With a mark where a byte cannot be decoded."""
    (tmp_path / "log").write_bytes(b"caf\xe9")
    assert "caf\N{REPLACEMENT CHARACTER}" == read_text(tmp_path / "log")


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "runs//tmp/x", "../x", "a/../../x", "a/./b", "", "a/", "."),
        *("a\x00b", "a\nb", "a\x1b[2Jb", "\x7f", "\udcff", "x" * 256, "/".join(["y" * 200] * 20)),
    ],
)
def test_names_that_leave_their_directory_are_refused(tmp_path: Path, name: str) -> None:
    """Absolute, with steps up or nowhere, with control characters, not Unicode, too long."""
    with pytest.raises(RunError, match=r"^The name .* is refused: "):
        member_path(tmp_path, name)


@pytest.mark.parametrize("name", ["runs/a/plan.yaml", "lr=0.1,x=[1,2]-s1", "...", "猫/b c", "..a/b~1"])
def test_names_that_hpcexp_and_people_give_are_taken(tmp_path: Path, name: str) -> None:
    """Whatever a file system allows but for that."""
    assert name_problem(name) is None
    assert tmp_path / name == member_path(tmp_path, name)


def test_a_foreign_mode_is_cut_to_the_umask() -> None:
    """No setuid, no setgid, no sticky bit, nothing that the umask takes."""
    before = os.umask(0o027)
    try:
        assert 0o750 == safe_mode(0o107777)
        assert 0o640 == safe_mode(0o4666)
        assert 0o027 == os.umask(0o027)
    finally:
        os.umask(before)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """To files or to directories; each is reported."""
    secret = tmp_path / "secret"
    (secret / "deep").mkdir(parents=True)
    (secret / "deep" / "key").write_text("k")
    root = tmp_path / "run"
    (root / "logs").mkdir(parents=True)
    (root / "logs" / "rank-0.log").write_text("fine")
    (root / "plan.yaml").symlink_to(secret / "deep" / "key")
    (root / "plots").symlink_to(secret)
    os.mkfifo(root / "pipe")
    left_out: dict[str, str] = {}
    found = list(regular_files(root, lambda path, why: left_out.update({path.name: why})))
    assert [root / "logs" / "rank-0.log"] == found
    assert {"plan.yaml": "it is a link", "plots": "it is a link", "pipe": "it is a FIFO"} == left_out
    assert [] == list(regular_files(root / "plots", lambda path, why: left_out.update({"root": why})))
    assert "it is a link" == left_out["root"]
    assert [] == list(regular_files(tmp_path / "none"))

"""The rules for files that somebody else may have made: names, links, kinds, modes and sizes.

Run directories, sweeps, snapshots and archives are handed around, so what is in them is input. Whoever reads, restores,
uploads, seals or adopts such files asks this module, and nothing else decides.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from hpcexp.errors import RunError

MAX_RECORD_BYTES = 16 << 20
"""Of a file that is read as a whole; the largest that hpcexp writes, a sweep's table, takes 1 KB a job."""
MAX_LINE_BYTES = 64 << 20
"""Of a line that is read as one; the longest that hpcexp writes has the metrics of one step."""
_MAX_HOLES_BYTES = 1 << 30
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 3072
"""Leaves room for the directory that it is put into: PATH_MAX is 4096."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnusableFileError(RunError):
    """A file that cannot be used as what it must be: a link, a FIFO, too large, not for this user. `why` says which."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path} is damaged: {why}.\nFix: restore it from a backup, or remove it.")


class UnreadableFileError(UnusableFileError):
    """A file that the system does not let this user read."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.args = (f"{path} cannot be read: {why}.\nFix: chmod u+r, or ask its owner.",)


def kind_problem(mode: int) -> str | None:
    """Why a file of this `st_mode` is not read; None for a regular file."""
    return None if stat.S_ISREG(mode) else f"it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}"


def open_regular(path: Path) -> BufferedReader:
    """The regular file `path`, open for reading.

    FileNotFoundError where there is none; UnusableFileError where it is anything else, or not for this user. Neither a
    FIFO without a writer nor a device blocks, as nothing is read before the kind is known.
    """
    return _opened(path, path, None)


def open_below(root: Path, name: PurePath) -> BufferedReader:
    """The regular file `name` below the directory `root`, open for reading. Errors as of `open_regular`.

    Each directory on the way is opened from the one above it, so that one that becomes a link meanwhile leads nowhere.
    """
    with ExitStack() as held:
        directory = _opened_directory(held, root, None, root)
        for depth, part in enumerate(name.parts[:-1], 1):
            directory = _opened_directory(held, part, directory, root.joinpath(*name.parts[:depth]))
        return _opened(root / name, name.name, directory)


def _opened_directory(held: ExitStack, at: Path | str, directory: int | None, shown: Path) -> int:
    follow = 0 if directory is None else os.O_NOFOLLOW  # the root is named by who asks
    try:
        handle = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow, dir_fd=directory)
    except FileNotFoundError:
        raise
    except PermissionError as e:
        raise UnreadableFileError(shown, str(e.strerror)) from e
    except OSError as e:  # ENOTDIR for a link, too
        raise UnusableFileError(shown, _kind_of(shown) or str(e.strerror)) from e
    held.callback(os.close, handle)
    return handle


def _opened(path: Path, at: Path | str, directory: int | None) -> BufferedReader:
    try:
        handle = os.open(at, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        raise
    except PermissionError as e:
        raise UnreadableFileError(path, str(e.strerror)) from e
    except NotADirectoryError as e:
        raise UnusableFileError(path, "a directory that it is in is none") from e
    except OSError as e:  # ELOOP for a link, ENXIO for a socket
        raise UnusableFileError(path, _kind_of(path) or str(e.strerror)) from e
    if (problem := kind_problem(os.fstat(handle).st_mode)) is not None:
        os.close(handle)
        raise UnusableFileError(path, problem)
    os.set_blocking(handle, True)
    return os.fdopen(handle, "rb")


def open_append(path: Path, mode: int = 0o666) -> int:
    """A descriptor for reading and appending to the regular file `path`, which is made where there is none.

    UnusableFileError where it is anything else, as a link to somebody's file. One that has a second name, as `cp -al`
    and archives give, becomes a file of its own first: what is written does not reach the other name.
    """
    handle = _opened_own(path, os.O_APPEND, mode)
    if os.fstat(handle).st_nlink == 1:
        return handle
    own = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    with os.fdopen(handle, "rb") as shared, own.open("xb") as file:
        shutil.copyfileobj(shared, file)
        os.fchmod(file.fileno(), os.fstat(shared.fileno()).st_mode & 0o777)
    os.replace(own, path)
    return _opened_own(path, os.O_APPEND, mode)


def open_lock(path: Path) -> int:
    """A descriptor of a regular file to be locked, which is made where there is none; its content is not touched."""
    return _opened_own(path, 0, 0o666)


def create(path: Path) -> int:
    """A descriptor for writing the file `path` anew; UnusableFileError where it is a link or the like."""
    return _opened_own(path, os.O_TRUNC, 0o666)


def folders_problem(root: Path, names: Iterable[str]) -> str | None:
    """Why what is to be the directories `names` in `root` is not written to; None where they are, or can be made."""
    for name in names:
        if (why := _kind_of(root / name)) is not None and why != f"it is {_KINDS[stat.S_IFDIR]}":
            return f"{root / name} is not used: {why}.\nFix: put the directory itself in its place."
    return None


def holes_problem(status: os.stat_result) -> str | None:
    """Why a file is not copied: it is mostly holes, and would take far more room and time than it takes now."""
    stored = status.st_blocks * 512  # whatever the file system's blocks are: stat(2)
    if status.st_size - stored < _MAX_HOLES_BYTES or stored > status.st_size // 2:
        return None
    return f"it is mostly holes: {status.st_size:,} bytes, of which {stored:,} are stored"


def sha256_of(path: Path) -> str:
    """Digest of a regular file's content. Errors as of `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened_own(path: Path, flags: int, mode: int) -> int:
    """A descriptor for reading and writing a regular file that is made where there is none, no link followed."""
    always = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        # Truncated once it is known to be a file.
        handle = os.open(path, always | flags & ~os.O_TRUNC, mode)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UnusableFileError(path, _kind_of(path) or str(e.strerror)) from e
        raise
    if (problem := kind_problem(os.fstat(handle).st_mode)) is not None:
        os.close(handle)
        raise UnusableFileError(path, problem)
    os.set_blocking(handle, True)
    if flags & os.O_TRUNC:
        os.ftruncate(handle, 0)
    return handle


def read_bytes(path: Path, limit: int = MAX_RECORD_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes. Errors as of `open_regular`."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnusableFileError(path, f"it has more than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = MAX_RECORD_BYTES) -> str:
    """The content of a regular file as UTF-8; what is not UTF-8 is replaced. Errors as of `open_regular`."""
    return read_bytes(path, limit).decode(errors="replace")


def lines_of(file: BinaryIO, limit: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The lines that follow in a file, each with its end; one of more than `limit` bytes comes in pieces."""
    return iter(lambda: file.readline(limit), b"")


def safe_mode(mode: int) -> int:
    """The permissions of a foreign file as it may have them here: within the umask, no setuid or sticky bit."""
    return mode & 0o777 & ~_umask()


def name_problem(name: str) -> str | None:
    """Why a relative path from an archive or a manifest must not be created below a directory; None where it may."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "it does not stay in its directory"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "it has a control character"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "it is not Unicode"
    if len(encoded) > _MAX_PATH_BYTES or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return "it is too long"
    return None


def member_path(root: Path, name: str) -> Path:
    """Where the member `name` of an archive belongs below `root`; RunError where its name leads elsewhere."""
    if (why := name_problem(name)) is not None:
        raise RunError(f"The name {name!r} is refused: {why}.")
    return root / PurePosixPath(name)


def names_problem(names: Iterable[str]) -> str | None:
    """Why files of these names cannot all be created below one directory; None where they can."""
    files, folders = set(names), set[str]()
    for name in files:
        if (why := name_problem(name)) is not None:
            return f"the name {name!r} is refused: {why}"
        folders.update(str(folder) for folder in PurePosixPath(name).parents)
    if both := sorted(files & folders):
        return f"{both[0]!r} is a file and a directory"
    return None


def regular_files(
    root: Path, left_out: Callable[[Path, str], None] = lambda _, __: None, *, deep: bool = True
) -> Iterator[Path]:
    """Every regular file below the directory `root`, sorted; no link is followed, `root` itself included.

    `left_out` gets what is neither a file nor a directory, and why. `deep`: those in folders, too.
    """
    if (problem := _kind_of(root)) is not None and problem != f"it is {_KINDS[stat.S_IFDIR]}":
        left_out(root, problem)
        return
    try:
        with os.scandir(root) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in found:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from regular_files(path, left_out) if deep else ()
        elif entry.is_file(follow_symlinks=False):
            yield path
        elif (why := _kind_of(path)) is not None:
            left_out(path, why)


def _kind_of(path: Path) -> str | None:
    """`kind_problem` of what is at `path` itself; None where there is nothing, too."""
    try:
        return kind_problem(os.lstat(path).st_mode)
    except OSError:
        return None


def _umask() -> int:
    """The umask, which can only be read by setting it. Linux tells it without."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

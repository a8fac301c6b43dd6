"""Files of a run or a sweep on their way to MLflow, by the rules for files that somebody else may have made.

They are opened here and handed on open: MLflow itself follows links, and a name may be another file's by then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from hpcexp.files.untrusted import UnusableFileError, open_below, regular_files
from hpcexp.tracking.mlflow.store import Store

MAX_BYTES = 1 << 30
"""Of a log, a record or a picture."""
NO_LIMIT = 1 << 63
_BLOCK = 512
"""Bytes of a block as `stat` counts them."""
_SPARSE = 16
"""A large file of which less than this part is stored is holes: nothing that training writes."""


def send(store: Store, run_id: str, root: Path, files: Iterable[Path]) -> None:
    """Keep those of the files that are below `root` with the MLflow run, in the folders that they are in there.

    What is a link, no file, or too large is named on stderr and left out.
    """
    for file in files:
        with handed(root, file, MAX_BYTES) as path:
            if path is not None:
                folder = file.relative_to(root).parent
                store.log_artifact(run_id, path, None if folder == Path() else str(folder))


def send_as(store: Store, run_id: str, root: Path, file: Path, place: PurePosixPath) -> None:
    """Keep a file below `root` with the MLflow run as `place`; what cannot be sent is named on stderr and left out."""
    with handed(root, file, MAX_BYTES, place.name) as path:
        if path is not None:
            store.log_artifact(run_id, path, None if place.parent == PurePosixPath() else str(place.parent))


def files_in(folder: Path, suffix: str = "") -> list[Path]:
    """The regular files below a folder, sorted; links and the like are named on stderr."""
    return [file for file in regular_files(folder, leave_out) if file.name.endswith(suffix)]


@contextmanager
def handed(root: Path, file: Path, limit: int, name: str = "") -> Iterator[Path | None]:
    """A path that is this file below `root` for this process, whatever becomes of its own; None where it is not sent.

    It ends in `name`, or else in the file's, by which MLflow keeps it.
    """
    opened = _opened(root, file, limit)
    if opened is None:
        yield None
        return
    with opened, TemporaryDirectory(prefix="hpcexp-") as place:
        path = Path(place, name or file.name)
        path.symlink_to(f"/proc/self/fd/{opened.fileno()}")
        yield path


def is_there(root: Path, file: Path) -> bool:
    """Whether there is such a file below `root`; what is none is named on stderr."""
    if (opened := _opened(root, file, NO_LIMIT)) is None:
        return False
    opened.close()
    return True


def leave_out(file: Path, why: str) -> None:
    """Name a file that is not sent."""
    print(f"left out: {str(file)!r}: {why}", file=sys.stderr, flush=True)


def _opened(root: Path, file: Path, limit: int) -> BufferedReader | None:
    """The file, if it is one and no larger than `limit`."""
    try:
        opened = open_below(root, file.relative_to(root))
    except FileNotFoundError:
        return None
    except UnusableFileError as e:
        leave_out(file, e.why)
        return None
    stat = os.fstat(opened.fileno())
    if (why := _size_problem(stat.st_size, stat.st_blocks * _BLOCK, limit)) is None:
        return opened
    opened.close()
    leave_out(file, why)
    return None


def _size_problem(size: int, stored: int, limit: int) -> str | None:
    if size > limit:
        return f"it has {size:,} bytes, and {limit:,} are sent at most"
    if size > MAX_BYTES and stored < size // _SPARSE:
        return f"it has {size:,} bytes, of which the disk holds {stored:,}"
    return None

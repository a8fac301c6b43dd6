"""The mark of the user who made a run: it decides whether code that the run's files name may run unasked.

A run's own files say where it comes from, and whoever passes a run on can edit them. A mark cannot be written by
others: keyed digests (HMAC, RFC 2104) of the files that name code, with a key that its user alone can read. Copies and
backups of a run keep it; a file that was edited is not what was marked.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from hpcexp.errors import RunError, listed
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.files.untrusted import read_bytes
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir

PLAN = ("plan.yaml",)
"""What names the code that a trained model is built of."""
CODE = (*PLAN, "lineage/code.json")
"""What names the commit and the patch that are restored to train again."""
PACKAGES = ("lineage/environment.json",)
"""What names the packages that are installed for that."""
_KEY_BYTES = 32


def key_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the user's key is: below XDG_STATE_HOME or ~/.local/state; None where there is no home."""
    with suppress(RuntimeError):
        return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "hpcexp", "key")
    return None


def mark(run: RunDir) -> None:
    """Mark the run as this user's. A user who can keep no key has unmarked runs, of which he will be asked."""
    with suppress(OSError, RunError):
        if (key := _key(is_to_be_made=True)) is not None:
            write_json(
                run.mark, {name: _digest(key, run, name) for name in (*CODE, *PACKAGES) if (run.path / name).exists()}
            )


def unmarked(run: RunDir, names: Iterable[str]) -> list[str]:
    """Which of the run's files are not as they were when this user made it. A file that is not there names nothing."""
    present = [name for name in names if (run.path / name).exists()]
    try:
        key, recorded = _key(), read_plain(run.mark)
    except (OSError, RunError):
        return present
    if key is None:
        return present
    return [name for name in present if not hmac.compare_digest(str(recorded.get(name)), _digest(key, run, name))]


def doubts(run: RunDir, plan: Plan, names: Iterable[str] = PLAN) -> Iterator[str]:
    """Why the run is not known to be this user's own of the project of the current directory; none if it is.

    `names`: the run's files that name the code.
    """
    foreign = [name for name in (".", *names) if _is_foreign(run.path / name)]
    if foreign:
        yield f"{listed('the directory' if name == '.' else name for name in foreign)}: not yours"
    if changed := unmarked(run, names):
        yield f"{listed(changed)}: not marked as made by you, or changed since"
    # A project that was moved away with its runs is nowhere any more, and has no code to run.
    project = Path(plan.lineage["project"])
    if project.exists() and not Path.cwd().resolve().is_relative_to(project.resolve()):
        yield f"its project is {project}, and this is {Path.cwd()}"


def _is_foreign(path: Path) -> bool:
    try:
        return path.lstat().st_uid != os.geteuid()
    except FileNotFoundError:
        return False


def _digest(key: bytes, run: RunDir, name: str) -> str:
    return hmac.new(key, name.encode() + b"\0" + read_bytes(run.path / name), hashlib.sha256).hexdigest()


def _key(*, is_to_be_made: bool = False) -> bytes | None:
    """The user's key; None where there is none, or others could have read or written it."""
    file = key_file()
    if file is None:
        return None
    if is_to_be_made and not file.exists():
        _make(file)
    try:
        recorded = file.lstat()
        key = read_bytes(file, _KEY_BYTES)
    except FileNotFoundError:
        return None
    is_own = recorded.st_uid == os.geteuid() and not recorded.st_mode & 0o077
    return key if is_own and len(key) == _KEY_BYTES else None


def _make(file: Path) -> None:
    """A new key, whole from the first moment on; one that another command has just made stays."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):
            os.link(new, file)
    finally:
        new.unlink(missing_ok=True)

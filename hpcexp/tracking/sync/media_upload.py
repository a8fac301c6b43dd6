"""What user code has logged beside metrics, brought to where MLflow's page shows it.

Pictures, figures and histograms become its image charts, over steps; tables its tables; all else artifacts.
"""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct

from hpcexp.files.documents import read_json
from hpcexp.files.untrusted import UnusableFileError
from hpcexp.media.entries import FOLDERS, Entry, indexes, read_entries
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.text.key_names import KeyTable
from hpcexp.tracking.mlflow import description
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.mlflow.store import Store
from hpcexp.tracking.plots.histogram import draw_histogram
from hpcexp.tracking.sync import artifacts
from hpcexp.tracking.sync.run_tags import NOTE
from hpcexp.tracking.sync.state import SyncState

AT_ONCE = 20
"""Entries of a rank that are sent in one go."""
_THUMBNAIL = 256
"""Pixels of the longer side of what image charts show first."""
_LONGEST_TAG = 7500
_IMAGES_TAG, _TABLES_TAG = "mlflow.loggedImages", "mlflow.loggedArtifacts"
"""The tags by which MLflow's page finds pictures and tables."""


class Table(Struct, frozen=True):
    """`media/tables/*/*.json` and `media/rows/*/*.json`."""

    columns: list[str]
    data: list[list[Any]]


class MediaUpload:
    """Sends what the indexes have and MLflow lacks. To send an entry again replaces what it sent before."""

    def __init__(self, run: RunDir, plan: Plan, sync_state: SyncState) -> None:
        self._run, self._plan, self._sync_state = run, plan, sync_state
        self._tables: dict[str, str] = {}
        """Name → the last file of each table."""

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has everything."""
        known = self._sync_state.known.media
        return all(known.get(index.name, 0) == index.stat().st_size for index in indexes(self._run.media).values())

    def send(self, store: Store, run_id: str) -> bool:
        """Send the next entries of each rank; whether there were any."""
        sent = dict(self._sync_state.known.media)
        for rank, index in indexes(self._run.media).items():
            entries, offset = read_entries(index, sent.get(index.name, 0), AT_ONCE)
            self._send(store, run_id, rank, list({entry.key: entry for entry in entries}.values()))
            sent[index.name] = offset
        if sent == self._sync_state.known.media:
            return False
        self._sync_state.update(media=sent)
        return True

    def place_of_ours(self, picture: Path) -> PurePosixPath:
        """Where a picture that hpcexp has drawn goes, if user code has not logged one for that place."""
        place = PurePosixPath(self._run.plots.name, picture.name)
        taken = self._run.media / FOLDERS["artifact"] / place
        return PurePosixPath("hpcexp-plots", picture.name) if taken.exists() else place

    def _send(self, store: Store, run_id: str, rank: int, entries: Iterable[Entry]) -> None:
        tags: dict[str, str] = {}
        for entry in entries:
            if entry.k == "param":
                self._send_param(store, run_id, entry)
            elif entry.k == "tag":
                self._send_tag(store, run_id, entry)
            elif entry.k == "rows":
                tags |= self._send_rows(store, run_id, entry)
            elif entry.k in ("image", "figure", "histogram"):
                tags |= self._send_picture(store, run_id, rank, entry)
            else:
                place = self._place(entry)
                artifacts.send_as(store, run_id, self._run.path, self._run.media / entry.f, place)
                tags |= self._table_tag(entry, place) if entry.k == "table" else {}
        if tags:
            store.log(run_id, tags=tags)

    def _place(self, entry: Entry) -> PurePosixPath:
        """Its path among the artifacts: of an artifact the one that user code gave."""
        if entry.k == "artifact":
            return PurePosixPath(entry.f).relative_to(FOLDERS["artifact"])
        if entry.k == "rows":
            return PurePosixPath(PurePosixPath(entry.f).parts[1].replace("~", "/"))
        return PurePosixPath(self._run.media.name, entry.f)

    def _send_picture(self, store: Store, run_id: str, rank: int, entry: Entry) -> dict[str, str]:
        """Send a picture with a thumbnail, as MLflow's `log_image` does; the tag that makes its page look for them."""
        file = self._run.media / entry.f
        if entry.k == "histogram":
            artifacts.send_as(store, run_id, self._run.path, file, self._place(entry))
        with TemporaryDirectory(prefix="hpcexp-") as scratch, contextlib.ExitStack() as held:
            root = self._run.path
            if entry.k == "histogram":
                root, file = Path(scratch), self._histogram(file, entry, Path(scratch, "histogram.png"))
            if file.suffix != ".png":
                artifacts.send_as(store, run_id, root, file, self._place(entry))
                return {}
            stem = _chart_name(rank, entry)
            place = PurePosixPath("images", f"{stem}.png")
            artifacts.send_as(store, run_id, root, file, place)
            path = held.enter_context(artifacts.handed(root, file, artifacts.MAX_BYTES))
            if path is not None and (small := _thumbnail(path)) is not None:
                thumbnail = Path(scratch, f"{stem}+compressed.webp")
                thumbnail.write_bytes(small)
                store.log_artifact(run_id, thumbnail, "images")
        return {_IMAGES_TAG: "True"}

    def _send_rows(self, store: Store, run_id: str, entry: Entry) -> dict[str, str]:
        """Send a table with all its rows, in the order of their steps."""
        found = (e for index in indexes(self._run.media).values() for e in read_entries(index)[0])
        parts = {e.key: e for e in found if e.k == "rows" and e.n == entry.n}
        place, columns, cells = self._place(entry), list[str](), list[list[Any]]()
        for part in sorted(parts.values(), key=lambda e: (e.s, e.i)):
            try:
                table = read_json(self._run.media / part.f, Table)
            except (UnusableFileError, OSError) as e:
                artifacts.leave_out(self._run.media / part.f, str(e))
                continue
            columns += [name for name in table.columns if name not in columns]
            rows = [dict(zip(table.columns, row, strict=False)) for row in table.data]
            cells += [[row.get(name) for name in columns] for row in rows]
        whole = [row + [None] * (len(columns) - len(row)) for row in cells]
        with TemporaryDirectory(prefix="hpcexp-") as scratch:
            file = Path(scratch, place.name)
            file.write_text(json.dumps({"columns": columns, "data": whole}, ensure_ascii=False))
            store.log_artifact(run_id, file, None if place.parent == PurePosixPath() else str(place.parent))
        return self._table_tag(entry, place)

    def _histogram(self, file: Path, entry: Entry, picture: Path) -> Path:
        """Draw it; where its numbers cannot be read, name that and leave it out."""
        try:
            return draw_histogram(file, f"{entry.n} · step {entry.s}", picture)
        except UnusableFileError as e:
            artifacts.leave_out(file, e.why)
            return picture

    def _table_tag(self, entry: Entry, place: PurePosixPath) -> dict[str, str]:
        """The tag that names the last of each table, as many as fit."""
        if not self._tables:
            found = (e for index in indexes(self._run.media).values() for e in read_entries(index)[0])
            self._tables = {e.k + e.n: str(self._place(e)) for e in found if e.k in ("table", "rows")}
        self._tables[entry.k + entry.n] = str(place)
        named: list[dict[str, str]] = []
        for path in self._tables.values():
            if len(json.dumps([*named, {"path": path, "type": "table"}])) > _LONGEST_TAG:
                break
            named.append({"path": path, "type": "table"})
        return {_TABLES_TAG: json.dumps(named)}

    def _send_param(self, store: Store, run_id: str, entry: Entry) -> None:
        configured = description.params(self._plan)
        if entry.n in configured:
            if configured[entry.n] != entry.v:
                _say(
                    f"the parameter {entry.n} is {configured[entry.n]} in the configuration; user code logged {entry.v}"
                )
            return
        keys = KeyTable()
        for name in configured:
            keys[name]
        store.log(run_id, params={keys[entry.n]: entry.v})

    def _send_tag(self, store: Store, run_id: str, entry: Entry) -> None:
        ours = description.tags(self._plan)
        if entry.n in (*ours, NOTE) or entry.n.startswith(names.PREFIX):
            _say(f"the tag {entry.n} is hpcexp's own; user code set it to {entry.v}")
            return
        store.log(run_id, tags={entry.n: entry.v})


def _chart_name(rank: int, entry: Entry) -> str:
    """The name without its suffix by which MLflow's image charts know a picture, the same at every try."""
    folder = PurePosixPath(entry.f).parts[1]
    name = folder + (f"~{entry.i}" if entry.i else "") + (f"~rank-{rank}" if rank else "")
    identity = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([rank, *entry.key]))
    return f"{name}+step+{entry.s}+timestamp+{entry.t}+{identity}"


def _thumbnail(path: Path) -> bytes | None:
    """A small WebP of a picture; None where it is none."""
    from PIL import Image

    made = BytesIO()
    try:
        with Image.open(path) as picture:
            small: Any = picture.convert("RGBA" if "A" in picture.mode else "RGB")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        small.save(made, format="WEBP")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return made.getvalue()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"{text}.", file=sys.stderr, flush=True)

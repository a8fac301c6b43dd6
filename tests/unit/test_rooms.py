"""The tree of the package stays small enough to be taken in at a glance, and docs/architecture.md names its rooms."""

from __future__ import annotations

import re
from pathlib import Path

import hpcexp
from hpcexp.lineage.code import RESULT_CODE

PACKAGE = Path(hpcexp.__file__).parent
DIRECTORIES = [PACKAGE, *(file.parent for file in sorted(PACKAGE.rglob("__init__.py")) if file.parent != PACKAGE)]
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
MOST_FILES = 24
MOST_FILES_AT_THE_ROOT = 12


def test_no_directory_has_more_files_than_a_reader_takes_in() -> None:
    """Counted with `__init__.py`; fewer still at the root, where a newcomer begins."""
    files = {directory: len(list(directory.glob("*.py"))) for directory in DIRECTORIES}
    most = {directory: MOST_FILES_AT_THE_ROOT if directory == PACKAGE else MOST_FILES for directory in DIRECTORIES}
    assert {} == {str(place): number for place, number in files.items() if number > most[place]}


def test_the_architecture_names_the_rooms_and_no_others() -> None:
    """Every directory and file at the root of the package, by the table of rooms."""
    table = ARCHITECTURE.read_text().partition("## Rooms")[2].partition("\n## ")[0]
    named = {
        name.rstrip("/")
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w./]+)`", line.split("|")[1])
    }
    rooms = {place.name for place in DIRECTORIES[1:] if place.parent == PACKAGE and place.name != "__NAME__"}
    files = {file.name for file in PACKAGE.glob("*.py") if not file.name.startswith("__")}
    assert rooms | files == named


def test_the_code_that_makes_results_exists() -> None:
    """A module that was moved away from `code.digest` would no longer count."""
    assert [] == [part for part in RESULT_CODE if not (PACKAGE / part).exists()]

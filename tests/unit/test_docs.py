"""What the documentation names exists: files of the package, files of the checkout, links between pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY

PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
ABOUT_THE_CODE = [
    REPOSITORY / "SECURITY.md",
    *(REPOSITORY / "docs" / name for name in ("architecture.md", "internals.md", "performance.md")),
]
ROOMS = [REPOSITORY, *(d for d in (REPOSITORY / "hpcexp").glob("**/") if "__pycache__" not in d.parts)]


@pytest.mark.parametrize("page", ABOUT_THE_CODE, ids=lambda page: page.name)
def test_every_python_file_that_a_page_names_exists(page: Path) -> None:
    """By its path from the checkout, the package or a room."""
    named = set(re.findall(r"`([\w/]+\.py)`", page.read_text()))
    assert named
    assert set() == {name for name in named if not any((room / name).is_file() for room in ROOMS)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_there(page: Path) -> None:
    """Relative links, without what stands behind the `#`."""
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())
    assert [] == [link for link in links if not (page.parent / link).exists()]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is in its menu, and every link and anchor leads somewhere."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert (tmp_path / "index.html").exists()


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    """The same commands, in the same order."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    [local] = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    expected = recipe[1].replace("$(BIN)", ".venv/bin").split("\n\t")
    assert [line.strip() for line in expected] == [hook["entry"] for hook in local["hooks"]]

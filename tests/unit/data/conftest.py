"""Folders of pictures, and a cache of digests of each test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import COLOURS, draw

from hpcexp.data.source import SPLITS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("HPCEXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Three classes of twenty pictures, not split."""
    for name, colour in COLOURS.items():
        for index in range(20):
            draw(tmp_path / "flat" / name / f"{index:02}.png", colour)
    return tmp_path / "flat"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Three classes, two pictures each, in every split; of several formats, some in folders of their own."""
    for part in SPLITS:
        for name, colour in COLOURS.items():
            draw(tmp_path / "split" / part / name / "a.PNG", colour)
            draw(tmp_path / "split" / part / name / "deeper" / "b.jpg", colour)
    return tmp_path / "split"

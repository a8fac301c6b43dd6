"""The lock: every file that `make setup` installs is known by its digest, but for torch."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from helpers import REPOSITORY
from packaging.markers import Marker

BLOCK = re.compile(r"([a-z0-9.-]+)==(\S+)(?: ; ([^\\]+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def test_every_locked_package_has_digests_and_is_what_is_installed() -> None:
    """All of the file is read: a line without a digest would not be."""
    text = (REPOSITORY / "requirements.lock").read_text()
    comment, _, locked = text.partition("\n")
    assert comment.startswith("# ")
    assert "" == BLOCK.sub("", locked)
    found = {
        name: number for name, number, marker, _ in BLOCK.findall(locked) if not marker or Marker(marker).evaluate()
    }
    assert {"mlflow", "pytorch-lightning", "hatchling", "torchmetrics"} < found.keys()
    assert not {"torch", "triton"} & found.keys()
    assert not [name for name in found if name.startswith(("nvidia-cu", "nvidia-nccl", "cuda-"))]
    assert {} == {name: here for name, number in found.items() if (here := installed(name)) not in (number, None)}
    assert version("torch").partition("+")[0] in (REPOSITORY / "requirements.in").read_text()


def test_setup_asks_for_the_digests() -> None:
    """And takes nothing beyond the lock into account for what it installs from it."""
    made = Path(REPOSITORY, "Makefile").read_text()
    assert "$(PIP) --require-hashes --no-deps -r requirements.lock" in made


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""A store that the tests of a file share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs whose database is made once for all tests of a file."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def database(root: Path) -> Path:
    """Its file."""
    return root / "mlflow.db"


@pytest.fixture
def uri(database: Path) -> str:
    """Its address."""
    return f"sqlite:///{database}"

"""What somebody else could have made, and what of this user's it could lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
from record_support import finish, make_run

from hpcexp.rundir import RunDir


@pytest.fixture
def run(project: Path) -> RunDir:
    """A run that has ended and is in no MLflow yet."""
    run = make_run(project / "runs", f"sqlite:///{project}/runs/mlflow.db", "x", steps=2)
    finish(run)
    return run


@pytest.fixture
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a key, of this user and outside of the project."""
    place = tmp_path_factory.mktemp("home")
    (place / "id_rsa").write_text("k3y of mine")
    return place

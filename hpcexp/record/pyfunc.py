"""An exported model as an MLflow model that loads with mlflow, torch and numpy alone."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hpcexp.plan import Plan

if TYPE_CHECKING:
    import numpy as np

CODE = Path(__file__).with_name("pyfunc_code.py")
"""What the model directory runs; it imports nothing of hpcexp."""


def save_pyfunc(path: Path, program: Path, example: np.ndarray, plan: Plan) -> None:
    """Write the MLflow model directory `path` around an exported program (`torch.export`); `example` is a batch."""
    import logging
    import os
    from tempfile import TemporaryDirectory

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

    import mlflow.pyfunc

    facts = plan.data
    classes = list(facts.class_names) if facts else []
    # It tells that it infers the signature, which is what the example is for.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.json"
        labels.write_text(json.dumps(classes))
        mlflow.pyfunc.save_model(
            path,
            python_model=str(CODE),
            artifacts={"program": str(program), "labels": str(labels)},
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
            metadata={"hpcexp.signature": plan.signature, "hpcexp.run": f"{plan.experiment}/{plan.name}"},
        )

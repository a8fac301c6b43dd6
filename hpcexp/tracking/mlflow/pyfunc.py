"""An exported model as an MLflow model that loads with mlflow, torch and numpy alone."""

from __future__ import annotations

import json
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from hpcexp.plan import Plan
from hpcexp.tracking.mlflow import tags as names

LOADER = Path(__file__).with_name("exported_program.py")
"""The code that goes along; it imports nothing of hpcexp."""


def save_pyfunc(path: Path, program: Path, input_shape: tuple[int, ...], plan: Plan) -> None:
    """Write the MLflow model directory `path` around an exported program (`torch.export`)."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    labels = plan.data.class_names if plan.data else ()
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        # The signature says all that an example would, and the program was tried on real inputs.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        data = Path(scratch) / "data"
        data.mkdir()
        shutil.copy(program, data / "model.pt2")
        (data / "labels.json").write_text(json.dumps(labels))
        mlflow.pyfunc.save_model(
            path,
            loader_module=LOADER.stem,
            code_paths=[str(LOADER)],
            data_path=str(data),
            signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *input_shape))])),
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
            metadata={names.SIGNATURE: plan.signature, names.RUN: f"{plan.experiment}/{plan.name}"},
        )

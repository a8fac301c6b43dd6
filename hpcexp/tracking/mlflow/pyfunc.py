"""An exported model as an MLflow model that loads with mlflow, torch and numpy alone."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hpcexp.plan import Plan
from hpcexp.tracking.mlflow import tags as names

LOADER = Path(__file__).with_name("exported_program.py")
"""The code that goes along; it imports nothing of hpcexp."""


def save_pyfunc(path: Path, program: Path, examples: Mapping[str, Any], plan: Plan, *, is_named: bool) -> None:
    """Write the MLflow model directory `path` around an exported program (`torch.export`).

    `examples`: name → array with a batch axis, in the order in which the program takes them, or by name.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    labels = plan.data.class_names if plan.data else ()
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        # The signature says all that an example would, and the program was tried on real inputs.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        data = Path(scratch) / "data"
        data.mkdir()
        shutil.copy(program, data / "model.pt2")
        (data / "labels.json").write_text(json.dumps(labels))
        inputs = {name: str(example.dtype) for name, example in examples.items()}
        (data / "inputs.json").write_text(json.dumps({"dtypes": inputs, "is_named": is_named}))
        mlflow.pyfunc.save_model(
            path,
            loader_module=LOADER.stem,
            code_paths=[str(LOADER)],
            data_path=str(data),
            signature=ModelSignature(inputs=Schema(_specs(examples, plan))),
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
            metadata={names.SIGNATURE: plan.signature, names.RUN: f"{plan.experiment}/{plan.name}"},
        )


def _specs(examples: Mapping[str, Any], plan: Plan) -> list[Any]:
    """The inputs as MLflow knows them: a single one has no name."""
    from mlflow.types import TensorSpec

    known = list(plan.data.inputs.items()) if plan.data else []
    specs = []
    for index, (name, example) in enumerate(examples.items()):
        fitting = dict(known).get(name) or (known[index][1] if index < len(known) else None)
        sides = fitting.shape if fitting and len(fitting.shape) == example.ndim - 1 else example.shape[1:]
        shape = (-1, *(-1 if side is None else side for side in sides))
        specs.append(TensorSpec(example.dtype, shape, **({"name": name} if len(examples) > 1 else {})))
    return specs

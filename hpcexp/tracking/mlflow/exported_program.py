"""Loads an exported PyTorch program as an MLflow model. Goes into the model's directory; knows nothing of hpcexp.

Input: an array `(N, …)`, made as in training, or several by name. Output: a dictionary with `outputs`, or with each of
the model's several outputs by name or number; of a classifier also `probabilities` and `labels`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Exported:
    """The program and the names of its classes."""

    def __init__(self, directory: Path) -> None:
        self.program = torch.export.load(directory / "model.pt2").module()
        self.labels = json.loads((directory / "labels.json").read_text())
        inputs = json.loads((directory / "inputs.json").read_text())
        self.dtypes, self.is_named = inputs["dtypes"], inputs["is_named"]

    def predict(self, model_input: Any, params: Any = None) -> dict[str, Any]:
        """Outputs for a batch."""
        given = model_input if isinstance(model_input, dict) else {next(iter(self.dtypes)): model_input}
        inputs = {name: torch.as_tensor(np.asarray(given[name], dtype)) for name, dtype in self.dtypes.items()}
        with torch.inference_mode():
            outputs = self.program(**inputs) if self.is_named else self.program(*inputs.values())
        if isinstance(outputs, dict):
            return {name: value.numpy() for name, value in outputs.items()}
        if not isinstance(outputs, torch.Tensor):
            return {f"output_{index}": value.numpy() for index, value in enumerate(outputs)}
        if not self.labels or outputs.shape[-1] != len(self.labels) or outputs.ndim != 2:
            return {"outputs": outputs.numpy()}
        probabilities = outputs.softmax(-1)
        labels = [self.labels[i] for i in probabilities.argmax(-1).tolist()]
        return {"outputs": outputs.numpy(), "probabilities": probabilities.numpy(), "labels": labels}


def _load_pyfunc(path: str) -> Exported:
    """What MLflow calls with the model's data directory."""
    return Exported(Path(path))

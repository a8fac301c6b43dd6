"""Loads an exported PyTorch program as an MLflow model. Goes into the model's directory; knows nothing of hpcexp.

Input: float32 `(N, …)`, normalised as in training. Output: a dictionary with `outputs` (the model's own), and for a
classifier `probabilities` and `labels`.
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

    def predict(self, model_input: Any, params: Any = None) -> dict[str, Any]:
        """Outputs for a batch."""
        inputs = torch.as_tensor(np.asarray(model_input, dtype=np.float32))
        with torch.inference_mode():
            outputs = self.program(inputs)
        if not self.labels:
            return {"outputs": outputs.numpy()}
        probabilities = outputs.softmax(-1)
        labels = [self.labels[i] for i in probabilities.argmax(-1).tolist()]
        return {"outputs": outputs.numpy(), "probabilities": probabilities.numpy(), "labels": labels}


def _load_pyfunc(path: str) -> Exported:
    """What MLflow calls with the model's data directory."""
    return Exported(Path(path))

"""Runs an exported PyTorch program as an MLflow model. Needs mlflow, numpy and torch, nothing else.

Input: float32 `(N, …)`, normalised as in training. Output: a dictionary with `outputs` (the model's own), and for a
classifier `probabilities` and `labels`.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

# Annotations of `predict` would be taken for a schema of tables; without them MLflow warns whoever loads the model.
warnings.filterwarnings("ignore", message=".*type hints to the `predict` method")


class Exported(PythonModel):
    """The program and the names of its classes."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load both from the model directory."""
        self.program = torch.export.load(context.artifacts["program"]).module()
        self.labels = json.loads(Path(context.artifacts["labels"]).read_text())

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Outputs for a batch."""
        inputs = torch.as_tensor(np.asarray(model_input, dtype=np.float32))
        with torch.inference_mode():
            outputs = self.program(inputs)
        if not self.labels:
            return {"outputs": outputs.numpy()}
        probabilities = outputs.softmax(-1)
        labels = [self.labels[i] for i in probabilities.argmax(-1).tolist()]
        return {"outputs": outputs.numpy(), "probabilities": probabilities.numpy(), "labels": labels}


set_model(Exported())

"""The cheap import of Lightning, in processes of its own."""

from __future__ import annotations

import subprocess
import sys


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_lightning_comes_without_scipy_and_matplotlib_and_torchmetrics_works_all_the_same() -> None:
    """Metrics, their functions and their plots are loaded when they are asked for."""
    code = """
from hpcexp.train.runtime.lazy_imports import lighten
lighten()
import sys, pytorch_lightning
print(sorted({"scipy", "matplotlib", "torchmetrics.classification"} & set(sys.modules)))
import torch, torchmetrics
from torchmetrics import MeanMetric, functional
print(torchmetrics.Accuracy(task="binary")(torch.tensor([1, 0]), torch.tensor([1, 1])).item())
print(functional.accuracy(torch.tensor([1]), torch.tensor([1]), task="binary").item())
mean = MeanMetric()
mean.update(2.0)
import matplotlib
matplotlib.use("Agg")
print(type(mean.plot()[0]).__name__, isinstance(mean, pytorch_lightning.utilities.types.Metric))
"""
    assert said(code).splitlines() == ["[]", "0.5", "1.0", "Figure True"]

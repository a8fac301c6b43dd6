"""What a user's Lightning classes are and decide themselves, read without importing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import write_module

from hpcexp.targets.lightning_module import CALLBACK, ModuleSource, callback_problems, is_subclass, module_source

BASES = """
from __future__ import annotations
raise RuntimeError("this must not be imported")
from typing import Generic, TypeVar
import torch
import torch.nn as nn
try:
    from lightning.pytorch import LightningModule as LM, Callback
except ImportError:
    from pytorch_lightning import LightningModule as LM, Callback
T = TypeVar("T")
class Sgd:
    configure_optimizers = lambda self: None
class Base(LM, Generic[T]):
    def configure_optimizers(self): ...
class Net(torch.nn.Sequential): ...
class Watch(Callback): ...
"""
MODULES = """
import lightning as L
import lightning.pytorch as pl
import pytorch_lightning
from lightning import LightningModule
from lightning.pytorch.core.module import LightningModule as Deep
from classes_bases import Base, Net, Sgd
Short = pl.LightningModule
class Plain(Net): ...
class Root(L.LightningModule): ...
class Submodule(L.pytorch.LightningModule): ...
class Named(LightningModule): ...
class Alias(pl.LightningModule): ...
class Buried(Deep): ...
class Assigned(Short): ...
class Classic(pytorch_lightning.LightningModule): ...
class Inherits(Base): ...
class Before(Sgd, Alias): ...
class After(Alias, Sgd): ...
class Gan(Root):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
class Unread(Alias, __import__("unread").Base): ...
def annotated() -> Root: ...
def returning(): return Inherits()
def either(flag): return Root() if flag else Plain()
"""


@pytest.fixture(autouse=True)
def _modules(project: Path) -> None:
    sys.path.insert(0, str(project))
    write_module(project, "classes_bases", BASES)
    write_module(project, "classes_modules", MODULES)


@pytest.mark.parametrize(
    "name", ["Root", "Submodule", "Named", "Alias", "Buried", "Assigned", "Classic", "annotated", "After"]
)
def test_a_lightning_module_is_known_by_any_name_of_its_base(name: str) -> None:
    """`lightning`, `lightning.pytorch` and `pytorch_lightning`, through aliases, assignments and functions."""
    assert ModuleSource(True, configures_optimizers=False) == module_source(f"classes_modules.{name}")


@pytest.mark.parametrize("name", ["Inherits", "Before", "returning", "Inherits.load_from_checkpoint"])
def test_configure_optimizers_is_found_in_any_base_that_wins_over_lightnings(name: str) -> None:
    """Also of generic bases in other files and of mixins; one behind LightningModule does not count (`After` above)."""
    assert ModuleSource(True, configures_optimizers=True) == module_source(f"classes_modules.{name}")


def test_manual_optimization_is_known() -> None:
    """From the assignment in a constructor."""
    assert module_source("classes_modules.Gan") == ModuleSource(True, configures_optimizers=False, is_manual=True)


def test_what_cannot_be_read_is_unknown() -> None:
    """A base that is computed may bring anything; a function may return either."""
    assert module_source("classes_modules.Unread") == ModuleSource(True, configures_optimizers=None)
    assert module_source("classes_modules.either").is_lightning is None
    assert module_source("no.such").is_lightning is None
    assert module_source("classes_modules.Plain") == ModuleSource(False)


def test_a_callback_that_is_none_is_told_at_plan_time() -> None:
    """By its class; Lightning's own and the user's pass under every name."""
    good = ("classes_bases.Watch", "lightning.pytorch.callbacks.EarlyStopping", "pytorch_lightning.callbacks.Timer")
    assert [True] * 3 == [is_subclass(target, CALLBACK) for target in good]
    assert [] == list(callback_problems({str(i): {"_target_": target} for i, target in enumerate(good)}))
    [problem] = callback_problems({"net": {"_target_": "classes_bases.Net"}})
    assert problem.startswith("callbacks.net._target_=classes_bases.Net: it makes no Lightning callback")

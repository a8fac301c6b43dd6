"""What a dotted name stands for, read without importing it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import write_module

from hpcexp.targets.source_code import UNKNOWN, Missing, Parameters, defining_file, imported_roots, locate, parameters


@pytest.fixture
def on_path(project: Path) -> Path:
    """A project whose modules can be named."""
    sys.path.insert(0, str(project))
    return project


def takes(types: dict[str, Any], *required: str, takes_any: bool = False) -> Parameters:
    return Parameters(types, frozenset(required), takes_any)


def test_a_class_takes_what_its_constructor_does(on_path: Path) -> None:
    """Plain types as they are annotated, Any for all others."""
    code = """
    raise RuntimeError("this must not be imported")
    class Net:
        def __init__(self, width: int, rate: "float | None" = None, sizes: list[int] = (), *,
                     other: Net, on: bool = True):
            pass
    """
    write_module(on_path, "src_class", code)
    types = {"width": int, "rate": float | None, "sizes": list, "other": Any, "on": bool}
    assert takes(types, "width", "other") == parameters("src_class.Net")


def test_a_function_takes_its_parameters(on_path: Path) -> None:
    """`**kwargs` takes any."""
    write_module(on_path, "src_function", "def make(name: str, *args, size=3, **rest): pass")
    assert takes({"name": str, "size": Any}, "name", takes_any=True) == parameters("src_function.make")


def test_constructors_are_inherited(on_path: Path) -> None:
    """Across modules and aliases."""
    write_module(on_path, "src_base", "class Base:\n    def __init__(self, depth: int = 2): pass")
    write_module(on_path, "src_child", "import src_base as b\nclass Child(b.Base):\n    pass")
    assert takes({"depth": int}) == parameters("src_child.Child")


def test_dataclasses_take_their_fields(on_path: Path) -> None:
    """Those without a default are required."""
    code = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass D:\n    a: int\n    b: str = ''"
    write_module(on_path, "src_dataclass", code)
    assert takes({"a": int, "b": str}, "a") == parameters("src_dataclass.D")


def test_reexports_are_followed(on_path: Path) -> None:
    """Relative, renamed and by star, into the file that defines the name."""
    package = on_path / "src_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Thing as Renamed\nfrom .stars import *\n")
    (package / "inner.py").write_text("class Thing:\n    def __init__(self, x: int): pass\n")
    (package / "stars.py").write_text("def star(y: float): pass\n")
    assert takes({"x": int}, "x") == parameters("src_package.Renamed")
    assert takes({"y": float}, "y") == parameters("src_package.star")
    assert package / "inner.py" == defining_file("src_package.Renamed")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("torch.optim.SDG", "there is no 'SDG' in torch.optim; did you mean 'SGD'?"),
        ("torch.nn.Linearr", "there is no 'Linearr' in torch.nn; did you mean 'Linear'?"),
        ("hpcexp.models.mlp.MPL", "there is no 'MPL' in hpcexp.models.mlp; did you mean 'MLP'?"),
        ("hpcexp.models.mlp", "'hpcexp.models.mlp' is a module, not something that can be called"),
        ("not a name", "'not a name' is not a dotted name"),
    ],
)
def test_names_that_lead_nowhere_are_missing(target: str, reason: str) -> None:
    """With the nearest name that is there."""
    assert Missing(reason) == locate(target)


def test_a_module_that_is_not_there_is_missing() -> None:
    """And it is said where it was looked for."""
    found = locate("nowhere.Net")
    assert isinstance(found, Missing)
    assert "there is no module 'nowhere'" in found.reason


@pytest.mark.parametrize("name", ["made", "Made", "anything"])
def test_names_made_at_run_time_are_left_to_the_job(on_path: Path, name: str) -> None:
    """No guess is an error for a user who is right."""
    write_module(on_path, "src_dynamic", "made = Made = type('X', (), {})\ndef __getattr__(name): pass")
    assert UNKNOWN is locate(f"src_dynamic.{name}")


@pytest.mark.parametrize(
    "decorated", ["@register\nclass A: pass", "class A(metaclass=M): pass", "class A(unknown.B): pass"]
)
def test_classes_that_cannot_be_read_are_left_to_the_job(on_path: Path, decorated: str) -> None:
    """Decorators, metaclasses and bases may change what they take."""
    name = f"src_unread_{abs(hash(decorated))}"
    write_module(on_path, name, decorated)
    assert UNKNOWN is parameters(f"{name}.A")


def test_torch_is_read_without_importing_it() -> None:
    """Its optimizers, modules and losses."""
    adamw, linear = parameters("torch.optim.AdamW"), parameters("torch.nn.Linear")
    assert isinstance(adamw, Parameters)
    assert {"params"} == adamw.required
    assert {"lr", "betas", "weight_decay", "fused"} <= adamw.types.keys()
    assert isinstance(linear, Parameters)
    assert {"in_features", "out_features"} == linear.required


def test_imports_of_a_file_are_known_but_those_for_types(on_path: Path) -> None:
    """What stands in functions or under TYPE_CHECKING is not imported with it."""
    code = """
    from typing import TYPE_CHECKING
    import os.path, numpy as np
    if TYPE_CHECKING:
        import torch
    else:
        import json
    try:
        import yaml
    except ImportError:
        import toml
    def f():
        import pandas
    """
    write_module(on_path, "src_imports", code)
    assert {"typing", "os", "numpy", "json", "yaml", "toml"} == imported_roots(on_path / "src_imports.py")

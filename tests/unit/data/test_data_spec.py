"""What a data set says of itself, checked where it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import write_module

from hpcexp.data.contradictions import sample_problem
from hpcexp.data.facts import data_facts
from hpcexp.data_spec import Classes, DataSpec, DataSpecError, TensorSpec, Tokens, Values
from hpcexp.plan import from_dict, to_dict
from hpcexp.train.tasks.task import model_arguments

GOOD: dict[str, Any] = {
    "num_train": 8,
    "num_val": 4,
    "num_test": 0,
    "inputs": {"x": TensorSpec((3,))},
    "targets": Classes(("a", "b")),
    "fingerprint": "f",
}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_train": 1.5}, "num_train=1.5: expected a whole number, at least 0."),
        ({"num_val": None}, "num_val=None: expected a whole number"),
        ({"num_test": -1}, "num_test=-1"),
        ({"num_test": True}, "num_test=True"),
        ({"inputs": {}}, "inputs={}: expected a mapping from names to TensorSpec"),
        ({"inputs": TensorSpec((3,))}, "expected a mapping from names to TensorSpec"),
        ({"inputs": {"x": (3,)}}, "inputs['x']=(3,): expected a TensorSpec."),
        ({"inputs": {"my input": TensorSpec((3,))}}, "that a Python argument can have"),
        ({"targets": ("a", "b")}, "targets=('a', 'b'): expected Classes, Values, Tokens or None."),
        ({"fingerprint": ""}, "fingerprint='': expected a digest"),
        ({"trusted": None}, "trusted=None: expected text"),
    ],
)
def test_each_field_is_checked(changes: dict[str, Any], what: str) -> None:
    """The message names the field, the value and what is expected."""
    with pytest.raises(DataSpecError) as caught:
        DataSpec(**{**GOOD, **changes})
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: TensorSpec(3), "TensorSpec.shape=3: expected a tuple of lengths"),  # type: ignore[arg-type]
        (lambda: TensorSpec((0,)), "TensorSpec.shape=(0,)"),
        (
            lambda: TensorSpec((3,), "flot32"),
            "TensorSpec.dtype='flot32': expected a dtype of torch by name, Did",
        ),
        (lambda: TensorSpec((3,), axes=("a", "b")), "a name for each of the 1 axes"),
        (lambda: Classes(None), "Classes.names=None: expected a tuple of texts."),  # type: ignore[arg-type]
        (lambda: Classes("ab"), "Classes.names='ab': expected a tuple of texts."),  # type: ignore[arg-type]
        (lambda: Classes(("a",)), "at least two classes"),
        (lambda: Classes(("a", "b", "a")), "Classes.names='a': expected a name that only one class has."),
        (lambda: Values("x"), "Values.shape='x'"),  # type: ignore[arg-type]
        (lambda: Tokens(1), "Tokens.vocabulary_size=1: expected a whole number, at least 2."),
    ],
)
def test_each_part_is_checked(make: Any, what: str) -> None:
    """Inputs and targets of every kind."""
    with pytest.raises(DataSpecError) as caught:
        make()
    assert what in str(caught.value)


def test_a_mistake_in_a_users_source_is_told_with_its_name(project: Path) -> None:
    """While planning, as a problem of the data, not of the plan's file."""
    write_module(
        project,
        "vague_source",
        """
        from hpcexp.data.source import Source
        from hpcexp.data_spec import Classes, DataSpec, TensorSpec
        class Vague(Source):
            def facts(self):
                return DataSpec(8, 8, 8, {"x": TensorSpec((3,))}, Classes(None), "f")
            def problems(self): return []
            def load(self, split): ...
            def read(self, path): ...
        """,
    )
    import sys

    sys.path.insert(0, str(project))
    assert (None, ["data: vague_source.Vague.facts(): Classes.names=None: expected a tuple of texts."]) == data_facts(
        "vague_source.Vague", {}
    )


@pytest.mark.parametrize(
    "targets", [Classes(("a", "b"), (None,), multiple=True), Values((2, 3), "float64"), Tokens(5, padding=0), None]
)
def test_a_plan_keeps_it_whole(targets: Any, tmp_path: Path) -> None:
    """Written as plain data and read back; lists become tuples."""
    from dataclasses import replace

    from training_plans import digits_plan

    from hpcexp.files.documents import parse_yaml
    from hpcexp.plan import load_plan, save_plan

    inputs = {"a": TensorSpec([None, 3], "int64", ["time", "channel"]), "b": TensorSpec(())}  # type: ignore[arg-type]
    spec = DataSpec(None, 4, 4, inputs, targets, "f", "names")
    plan = replace(digits_plan(tmp_path), data=spec)
    assert spec == from_dict(to_dict(plan)).data
    save_plan(plan, tmp_path / "plan.yaml")
    assert spec == load_plan(tmp_path / "plan.yaml").data
    assert parse_yaml((tmp_path / "plan.yaml").read_text())["data"]["inputs"]["a"]["shape"] == [None, 3]


def test_the_model_gets_what_follows_from_it() -> None:
    """The shape of a single input, and how many numbers it gives."""
    assert {"in_shape": (3,), "num_classes": 2} == model_arguments(DataSpec(**GOOD))
    two = {"a": TensorSpec((3,)), "b": TensorSpec(())}
    assert {"num_classes": 5} == model_arguments(DataSpec(**{**GOOD, "inputs": two, "targets": Tokens(5)}))
    assert {"in_shape": (3,), "num_classes": 6} == model_arguments(DataSpec(**{**GOOD, "targets": Values((2, 3))}))


def test_samples_that_are_something_else_are_named() -> None:
    """Shape, dtype, a missing name; an open axis takes any length."""
    import torch

    two = DataSpec(**{**GOOD, "inputs": {"a": TensorSpec((None, 2)), "b": TensorSpec((), "int64")}})
    number = torch.zeros((), dtype=torch.int64)
    assert sample_problem(({"a": torch.zeros(7, 2), "b": number}, 0), two) is None
    assert sample_problem({"a": torch.zeros(7, 2), "b": number, "y": 0}, two) is None
    assert "a of shape (7, 3), where facts() says (None, 2)" == sample_problem(
        ({"a": torch.zeros(7, 3), "b": number}, 0), two
    )
    assert "b of dtype float32, where facts() says int64" == sample_problem(
        ({"a": torch.zeros(7, 2), "b": torch.zeros(())}, 0), two
    )
    assert "samples without b, which facts() lists among its inputs" == sample_problem(
        ({"a": torch.zeros(7, 2)}, 0), two
    )

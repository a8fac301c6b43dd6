"""Filters over what is recorded: what they hold for, and what is said of those that cannot be read."""

from __future__ import annotations

import pytest

from hpcexp.compare.query import EXAMPLE, Value, parse
from hpcexp.errors import ConfigError

RUN: dict[str, Value] = {
    "optimizer.lr": "0.003",
    "optimizer.fused": "true",
    "optimizer.decay": "0",
    "scheduler": "null",
    "model": "cnn",
    "data._target_": "hpcexp.data.Digits",
    "model.hidden": "[64, 64]",
    "sweep": ("lr", "width"),
    "test/acc": 0.91,
    "odd name": "x",
}


@pytest.mark.parametrize(
    "text",
    [
        "optimizer.lr < 0.01",
        "optimizer.lr = 3e-3",
        "optimizer.lr == .003",
        "0.9 < test/acc <= 0.91",
        "test/acc > -1",
        "model = 'cnn'",
        'model != "mlp"',
        "model in ('mlp', 'cnn')",
        "model not in ['mlp']",
        "optimizer.lr in (0.003, 0.01)",
        "sweep = 'width'",
        "'lr' in sweep",
        "scheduler = null",
        "not scheduler",
        "optimizer.fused = true and optimizer.fused",
        "optimizer.decay = 0 and not optimizer.decay",
        "nothing = null",
        "not (model = 'mlp' or test/acc < 0.5)",
        "model = 'mlp' and test/acc < 0 or model = 'cnn'",
        "model = 'cnn' or model = 'cnn' and test/acc < 0",
        "model = 'cnn' AND NOT model = 'mlp'",
        "model.hidden = '[64, 64]'",
        "data._target_ = 'hpcexp.data.Digits'",
        "`odd name` = 'x'",
        "'and' != 'or'",
    ],
)
def test_it_holds(text: str) -> None:
    """Values are as they are typed in overrides; numbers compare as numbers."""
    assert parse(text).matches(RUN.get)


@pytest.mark.parametrize(
    "text",
    [
        "optimizer.lr > 0.01",
        "model = 'cnn' and test/acc > 0.95",
        "model < 3",
        "nothing < 3",
        "nothing >= 3",
        "nothing",
        "sweep = 'depth'",
        "optimizer.fused < 2 or optimizer.fused > 0",
        "test/acc < 0.92 < 0.5",
        "model in ('mlp')",
    ],
)
def test_it_does_not_hold(text: str) -> None:
    """What is no number, or not there, is neither less nor more than one."""
    assert not parse(text).matches(RUN.get)


def test_names_are_what_is_asked_of_a_run() -> None:
    """Each once, in their order."""
    assert ("model", "optimizer.lr", "test/acc") == parse(f"{EXAMPLE} and not model").names


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("", "", "a name, text or number is missing here"),
        ("model = ", "model =", "a name, text or number is missing here"),
        ("model = 'cnn", "model = ", "this cannot be read"),
        ("model = 'cnn' & test/acc > 1", "model = 'cnn' ", "Fix: `and` for `&`."),
        ("model <> 'cnn'", "model <", "a name, text or number is missing here"),
        ("model 'cnn'", "model ", "an `and` or `or` is missing here"),
        ("(model = 'cnn'", "(model = 'cnn'", "`)` is missing here"),
        ("model not 'cnn'", "model not ", "`in` is missing here"),
        ("model in ('a' 'b')", "model in ('a' ", "`)` is missing here"),
        ("and model", "", "a name, text or number is missing here"),
        ("__import__('os').system('ls')", "__import__('os')", "this cannot be read"),
        ("__import__('os')", "__import__", "an `and` or `or` is missing here"),
        ("lr > 1_000", "lr > ", "this cannot be read"),
        ("größe > 1 ; 2", "größe > 1 ", "this cannot be read"),
        ("(" * 200 + "x" + ")" * 200, "(" * 100, "nested more than 100 deep"),
        ("not " * 5000 + "x", "not " * 100, "nested more than 100 deep"),
    ],
)
def test_what_cannot_be_read_is_marked(text: str, place: str, told: str) -> None:
    """With what is wrong there, and a filter as it should be."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    lines = str(caught.value).splitlines()
    assert (f"  {text}", f"  {' ' * len(place)}^") == (lines[1], lines[2])
    assert told in str(caught.value)
    assert EXAMPLE in lines[-1]

"""Names get keys that every MLflow store takes, one to one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hpcexp.text.key_names import KeyTable, flat, folded, keyed, legal_key, renamed

ODD = (
    *(
        "val/f1/a+b",
        "val/f1/a*b",
        "val/f1/a_b",
        "val//f1",
        "val/f1",
        "/x",
        "x",
        "x/",
        "a/../b",
        "b",
        "a/b",
        "./b",
        "..",
    ),
    *(
        ".",
        "",
        " ",
        "\n",
        "x\n",
        "e\u0301",
        "\u00e9",
        "e",
        "E",
        "\U0001f600",
        "\U00020000",
        "#",
        "50%",
        "a\\b",
        "\ud800",
    ),
    *("m" * 250, "m" * 251, "m" * 252, "猫" * 81, "猫" * 80, "猫" * 90, "a" * 245 + "/..", "loss ", "loss"),
)
"""Names that stores refuse, cut, or take for one another."""


def mlflow_problem(key: str) -> str | None:
    """Why MLflow refuses a key."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

    try:
        _validate_metric_name(key)
    except MlflowException as e:
        return str(e)
    return None if len(key) <= MAX_ENTITY_KEY_LENGTH else "too long"


@pytest.mark.parametrize("name", ["train/loss", "val/acc", "val/f1/猫", "val/f1/狗", "a.b-c d:e", "é"])
def test_what_stores_take_keeps_its_name(name: str) -> None:
    """In whatever alphabet."""
    assert name == legal_key(name) == KeyTable()[name]
    assert mlflow_problem(name) is None


def test_odd_names_have_keys_that_mlflow_takes_one_to_one() -> None:
    """Also where a database compares without case and accents, and where each part is a file's name."""
    table = KeyTable()
    keys = [table[name] for name in ODD]
    assert [mlflow_problem(key) for key in keys] == [None] * len(ODD)
    assert len({folded(key) for key in keys}) == len(ODD)
    assert all(len(part.encode()) <= 240 for key in keys for part in key.split("/"))
    assert {name: key for name, key in zip(ODD, keys, strict=True) if name != key} == table.renamed
    assert len({folded(flat(key)) for key in keys}) == len(ODD)


@pytest.mark.parametrize("order", [ODD, ODD[::-1]])
def test_a_key_stays_that_of_its_name(order: Sequence[str]) -> None:
    """In a table made from another's keys, and when a name is looked up again."""
    first = KeyTable()
    keys = {name: first[name] for name in order[:20]}
    second = KeyTable(first.keys)
    later = {name: second[name] for name in (*order[20:], *order[:20])}
    assert keys.items() <= later.items()
    assert len({folded(key) for key in later.values()}) == len(ODD)


def test_a_name_that_looks_like_a_key_takes_none_away() -> None:
    """The digest is longer then."""
    taken = legal_key("val//f1")
    table = KeyTable()
    assert (table[taken], table["val//f1"]) == (taken, KeyTable({"": taken})["val//f1"])
    assert table[taken] != table["val//f1"]


def test_values_keep_their_names_apart() -> None:
    """As parameters and tags are sent."""
    assert keyed({"a/b": 1, "a//b": 2}) == {"a/b": 1, legal_key("a//b"): 2}
    assert renamed(["a/b", "a//b"]) == {"a//b": legal_key("a//b")}

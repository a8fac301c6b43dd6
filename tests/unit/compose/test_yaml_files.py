"""YAML as users have it: the same rules for config files and sweeps, texts as they are written, wrong encodings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said, write_conf

from hpcexp.compose.composer import Composed, Composer
from hpcexp.errors import ConfigError
from hpcexp.sweep.spec.spec import combinations
from hpcexp.sweep.spec.sweep_file import read_sweeps

SCALARS = [
    *("1e-3", "1.0e-3", "1e5", "1.", ".5", "-1e-7", "+3", "1_000", "017", "0x1F", "0o17", "0b11", "1:30", "1:30.5"),
    *("on", "off", "yes", "no", "y", "n", "true", "True", "~", "null", ".inf", "-.inf", "2024-01-31", "5204e522"),
    *("'1e-3'", '"on"', "a b", "it's", "'a\\b'", "'ends in \\'", r"'\\'", "'x, y'", "'{x}'", "'a=b'", "ünïcödé", "''"),
    *(r"'\${not.a.key}'", "${seed}", "'${seed}-x'", r"'c:\${seed}'"),
    *("[1e-3, on, 017]", "{a: 1e-3, b: [on, '1']}", "{1: a, 2: b}", "{true: x, off: y}", "{1: a, x: b}", "{a b: 1}"),
    *("{a: {}, b: []}", "{'x:y': 1}", r"{c: '\${x}'}"),
]


@pytest.mark.parametrize("text", SCALARS)
def test_a_value_is_the_same_in_a_sweep_as_in_a_config_file(project: Path, text: str) -> None:
    """As an axis, in a point and in the base."""
    head = "# @package _global_\nname: x\ncallbacks:\n  own:\n    _target_: own.Callback\n"
    write_conf(project, {"experiment/with.yaml": f"{head}    value: {text}\n", "experiment/without.yaml": head})
    (project / "sweeps").mkdir()
    composer = Composer(project)
    expected = composer.compose(["experiment=with"]).config["callbacks"]["own"]["value"]
    for asks in (
        f"axes:\n  callbacks.own.value:\n    - {text}",
        f"points:\n  - callbacks.own.value: {text}",
        f"base:\n  - experiment=without\n  - callbacks.own.value: {text}\nseeds: 1",
    ):
        base = "" if "base" in asks else "base: [experiment=without]\n"
        (project / "sweeps" / "mine.yaml").write_text(f"question: What is it?\n{base}{asks}\n", encoding="utf-8")
        spec = read_sweeps("mine", composer, [])[""]
        [job] = combinations(spec)
        made = composer.compose([*spec.base, *job], in_sweep=True)
        assert not made.problems
        found = made.config["callbacks"]["own"]["value"]
        assert (expected, type(expected)) == (found, type(found))
        assert repr(expected) == repr(found)


@pytest.mark.parametrize("low", ["1e-4", "1.0e-4", "0.0001"])
def test_the_ends_of_an_axis_are_numbers_as_in_a_config_file(project: Path, low: str) -> None:
    """The example of the help is one."""
    (project / "sweeps").mkdir()
    axes = f"axes: {{optimizer.lr: {{low: {low}, high: 1e-1, log: true}}}}"
    (project / "sweeps" / "mine.yaml").write_text(f"question: Which rate?\n{axes}\nsearch: {{sampler: tpe}}\n")
    [axis] = read_sweeps("mine", Composer(project), [])[""].axes.values()
    assert (0.0001, 0.1) == (axis.low, axis.high)  # type: ignore[union-attr]


@pytest.mark.parametrize("where", ["conf/trainer/mine.yaml", "sweeps/mine.yaml"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"question: x\nmax_epochs: 1\nmax_epochs: 2\n", ":3: this is not YAML: max_epochs is twice."),
        (b"1: x\n1: y\n", ":2: this is not YAML: 1 is twice."),
        (b"question: x\n\tmax_epochs: 1\n", "Fix: indent with spaces."),
        ("question: x\n# über\n".encode("latin-1"), ":2: byte 0xfc is not UTF-8"),
        ("question: x\n".encode("utf-16"), ":1: byte 0xff is not UTF-8"),
        (b"question: [x\n", ": this is not YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    hpcexp: Callable[..., Said], project: Path, where: str, content: bytes, told: str
) -> None:
    """In one sentence."""
    file = project / where
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    said = hpcexp("plan", "trainer=mine") if "conf" in where else hpcexp("sweep", "mine", "--plan")
    assert 2 == said.status
    assert f"{where}:" in said.err
    assert told in said.err


def test_a_byte_order_mark_is_no_part_of_a_file(compose: Callable[..., Composed], project: Path) -> None:
    """Hydra would not see the header behind it, and put the keys elsewhere."""
    write_conf(project, {"experiment/marked.yaml": "\ufeff# @package _global_\nname: marked\nseed: 7\n"})
    made = compose("experiment=marked").config
    assert ("marked", 7) == (made["name"], made["seed"])
    (project / "sweeps").mkdir()
    (project / "sweeps" / "mine.yaml").write_text("\ufeffquestion: x\nseeds: 2\n", encoding="utf-8")
    assert (1, 2) == read_sweeps("mine", Composer(project), [])[""].seeds


TEXTS = ["5204e522", "007", "1e5", "1_000", "true", "on", "1:30", "inf", ".5", "12"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "key", ["name", "notes", "run.label", "run.resume_from", "tracking.uri", "tracking.tags.commit"]
)
def test_a_text_that_looks_like_a_number_stays_a_text(
    compose: Callable[..., Composed], project: Path, key: str, text: str
) -> None:
    """On the command line and in files, of any group and package."""
    nested = text
    for part in reversed(key.split(".")):
        nested = f"{{{part}: {nested}}}"
    named = "" if key == "name" else "name: x\n"
    write_conf(project, {"experiment/x.yaml": f"# @package _global_\n{named}{nested[1:-1]}\n"})
    for made in (compose(f"{key}={text}"), compose("experiment=x")):
        value: object = made.config
        for part in key.split("."):
            value = value[part]  # type: ignore[index]
        assert text == value
    assert (f"{key}={text}",) == compose(f"{key}={text}").overrides


def test_texts_of_a_sweep_stay_texts(hpcexp: Callable[..., Said]) -> None:
    """And its jobs are named as they were asked for."""
    said = hpcexp("plan", "-m", "run.label=007,1e5")
    assert ["runs  digits_mlp/007-base", "runs  digits_mlp/1e5-base"] == [
        line.partition("-s1-")[0] for line in said.out.splitlines()[:2]
    ]
    said = hpcexp("plan", "-m", "name=choice(007,1e5)")
    assert ["runs  007/base", "runs  1e5/base"] == [line.partition("-s1-")[0] for line in said.out.splitlines()[:2]]


def test_tags_in_a_mapping_stay_texts(compose: Callable[..., Composed]) -> None:
    """Commits are such texts."""
    made = compose("+tracking.tags={commit:5204e522,version: 1e5,team:vision}")
    assert {"commit": "5204e522", "version": "1e5", "team": "vision"} == made.config["tracking"]["tags"]


@pytest.mark.parametrize("option", ["1", "on", "1e3", "007", "true"])
def test_options_may_be_called_as_numbers_are(project: Path, option: str) -> None:
    """On the command line, in a defaults list, and as the values of an axis."""
    write_conf(
        project,
        {
            f"trainer/{option}.yaml": "max_epochs: 3\nmonitor: val/loss\nmode: min\n",
            "experiment/x.yaml": f"# @package _global_\nname: x\ndefaults:\n  - override /trainer: {option}\n",
        },
    )
    composer = Composer(project)
    for given in (f"trainer={option}", "experiment=x"):
        made = composer.compose([given])
        assert (option, 3) == (made.choices["trainer"], made.config["trainer"]["max_epochs"])
    assert (f"trainer={option}",) == composer.compose([f"trainer={option}"]).overrides
    from hpcexp.sweep.hydra.multirun import planned

    plans = planned(composer, [f"trainer=default,{option}"], ["hpcexp"])
    assert ["default", option] == [plan.choices["trainer"] for plan in plans]
    assert (f"trainer={option}",) == plans[1].overrides


def test_a_number_where_none_is_a_text_stays_a_number(compose: Callable[..., Composed]) -> None:
    """Arguments of targets and numeric keys are what they look like."""
    made = compose("seed=12", "optimizer.lr=1e-3", "model.dropout=.5", "task.loss.label_smoothing=1e-1").config
    assert (12, 1e-3, 0.5, 0.1) == (
        *(made["seed"], made["optimizer"]["lr"], made["model"]["dropout"]),
        made["task"]["loss"]["label_smoothing"],
    )


def test_a_key_that_no_override_can_give_is_refused(project: Path) -> None:
    """`'1'` as the key of a mapping would arrive as the number."""
    (project / "sweeps").mkdir()
    (project / "sweeps" / "mine.yaml").write_text("question: x\npoints: [{model.map: {'1': a}}]\n")
    with pytest.raises(ConfigError, match="an override cannot give this key"):
        read_sweeps("mine", Composer(project), [])[""]


@pytest.mark.parametrize("name", ["it's", "${x} y", "ünï", "a=b,c", "-lead", "[1]", "{a: b}", "back\\slash"])
def test_a_project_may_be_in_any_directory(
    hpcexp: Callable[..., Said], project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With files of its own, as one run and as a multirun of each kind."""
    directory = project / name
    directory.mkdir()
    monkeypatch.chdir(directory)
    content = "# @package _global_\nname: x\nseed: 3\nnotes: ${hydra:runtime.cwd}\n"
    write_conf(directory, {"experiment/x.yaml": content})
    assert str(directory) == Composer(directory).compose(["experiment=x"]).config["notes"]
    for more in ((), ("-m",), ("-m", "hydra/launcher=joblib")):
        said = hpcexp("plan", "experiment=x", *more)
        assert (0, "") == (said.status, said.err)
        assert "x/base-s3-" in said.out

"""The user's own sections at the root, options and keys that are null, and mappings with keys of any type."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said, write_conf, write_module

from hpcexp.compose.composer import Composed, Composer
from hpcexp.compose.sources import packaged_conf
from hpcexp.plan import digest, load_plan, save_plan
from hpcexp.planner import prepare

NET = "class Net:\n    def __init__(self, in_shape, num_classes, norm=None, width: int = 3, table=None): pass\n"


@pytest.fixture
def own(project: Path) -> Path:
    """A project with a group and values of its own."""
    sys.path.insert(0, str(project))
    write_module(project, "own_free_net", NET)
    primary = (packaged_conf() / "config.yaml").read_text()
    primary = primary.replace("model: mlp", "model: own").replace(
        "  - experiment: digits_mlp", "  - norm: layer\n  - paths: default\n  - aside: null\n  - experiment: digits_mlp"
    )
    write_conf(
        project,
        {
            "config.yaml": f"{primary}vars:\n  width: 8\n  unused: 1\n  open: ???\n",
            "model/own.yaml": "_target_: own_free_net.Net\nnorm: ${norm}\nwidth: ${vars.width}\ntable: ${aside}\n",
            "norm/layer.yaml": "_target_: torch.nn.LayerNorm\n_partial_: true\neps: 1e-3\n",
            "paths/default.yaml": "out: ${hydra:runtime.output_dir}\nmissing: ${nowhere}\n",
            "aside/x.yaml": "a: 1\n",
        },
    )
    return project


def test_values_of_the_users_own_are_used_where_they_are_named(own: Path, compose: Callable[..., Composed]) -> None:
    """Only there: what nobody refers to is not resolved, and no part of the plan."""
    made = compose()
    assert () == made.problems
    assert {"vars", "norm", "paths", "aside"}.isdisjoint(made.config)
    node = {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": 1e-3}
    assert (8, node, None) == tuple(made.config["model"][key] for key in ("width", "norm", "table"))
    assert 9 == compose("vars.width=9").config["model"]["width"]
    assert 4 == compose("vars.new=4", "model.width=${vars.new}").config["model"]["width"]
    assert {"norm": "layer", "paths": "default"}.items() <= made.choices.items()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("vars.unused=3", ["vars.unused: nothing refers to it."]),
        ("vars.widht=9", ["vars.widht", "Did you mean 'width'?"]),
        ("norm.epsilon=1", ["norm.epsilon"]),
        ("+foo=1", ["foo: there is no key 'foo'", "A value of your own: vars.foo."]),
        ("+optimiser={lr: 1}", ["Did you mean 'optimizer'?"]),
        ("+trainr={x: 1}", ["Did you mean 'trainer'?"]),
    ],
)
def test_misspelt_sections_and_unused_values_are_refused(
    own: Path, hpcexp: Callable[..., Said], override: str, words: list[str]
) -> None:
    """With what is near."""
    said = hpcexp("plan", override)
    assert 2 == said.status
    assert all(word in said.err for word in words), said.err


@pytest.mark.parametrize("group", ["optimiser", "callback", "trainr"])
def test_a_group_that_is_nearly_a_section_of_hpcexps_is_refused(
    project: Path, hpcexp: Callable[..., Said], group: str
) -> None:
    """It would change nothing."""
    primary = (packaged_conf() / "config.yaml").read_text()
    write_conf(project, {"config.yaml": primary.replace("  - debug: null", f"  - {group}: x\n  - debug: null")})
    write_conf(project, {f"{group}/x.yaml": "lr: 1\n"})
    said = hpcexp("plan")
    assert (2, True) == (said.status, f"there is no key '{group}'" in said.err)


@pytest.mark.parametrize("override", ["norm=null", "~norm"])
def test_an_ablation_leaves_a_group_out(own: Path, compose: Callable[..., Composed], override: str) -> None:
    """What refers to it is null."""
    made = compose(override)
    assert ((), None) == (made.problems, made.config["model"]["norm"])
    assert "norm" not in made.choices


def test_ablations_are_axes(own: Path, hpcexp: Callable[..., Said]) -> None:
    """With and without."""
    alone = [hpcexp("plan", f"norm={option}").out for option in ("layer", "null")]
    swept = hpcexp("plan", "-m", "norm=layer,null")
    assert 0 == swept.status, swept.err
    signatures = [next(line.split()[1] for line in out.splitlines() if "signature" in line) for out in alone]
    assert len(set(signatures)) == 2
    assert all(signature[:8] in swept.out for signature in signatures)


@pytest.mark.parametrize("override", ["~experiment", "experiment=null", "+experiment=null"])
def test_there_may_be_no_experiment(compose: Callable[..., Composed], override: str) -> None:
    """Then the command line says the name."""
    made = compose(override, "name=x")
    assert ((), "x", False) == (made.problems, made.config["name"], "experiment" in made.choices)


def test_a_plus_before_a_group_of_the_defaults_is_no_mistake(compose: Callable[..., Composed]) -> None:
    """As in Hydra's own documentation of experiments."""
    assert "cnn" == compose("+experiment=digits_cnn").choices["model"]
    assert "sgd" == compose("+optimizer=sgd", "seed=3").choices["optimizer"]


def test_null_switches_a_callback_off(project: Path, compose: Callable[..., Composed]) -> None:
    """In a file or an override; the run is the same as without it."""
    timer = "callbacks:\n  timer:\n    _target_: pytorch_lightning.callbacks.Timer\n"
    write_conf(project, {"experiment/x.yaml": f"# @package _global_\nname: x\n{timer}"})
    assert {} == compose("experiment=x", "callbacks.timer=null").config["callbacks"]
    assert {} == compose("experiment=x", "~callbacks.timer").config["callbacks"]
    assert {} == compose("+callbacks.other=null").config["callbacks"]


@pytest.mark.parametrize("key", ["model.norm", "run.resume_from", "trainer.patience", "launch.max_jobs"])
def test_a_key_that_is_null_may_be_left_out(own: Path, key: str) -> None:
    """Hydra takes it for one that does not exist. The plan can be read again."""
    overrides = ["norm=null", f"~{key}"]
    plan = prepare(Composer(own).compose(overrides), own, ["hpcexp"])
    save_plan(plan, own / "plan.yaml")
    assert digest(plan) == digest(load_plan(own / "plan.yaml"))
    assert "norm" in plan.config["model"] or key == "model.norm"


def test_a_key_that_does_not_exist_cannot_be_left_out(hpcexp: Callable[..., Said]) -> None:
    """It is probably misspelt."""
    said = hpcexp("plan", "~trainer.patiense")
    assert (2, True) == (said.status, "it does not exist" in said.err)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=${oc.env:OWN}", 0.01),
        ("data.global_batch_size=${oc.env:OWN_INT}", 32),
        ("seed=${oc.env:OWN_INT}", 32),
    ],
)
def test_numbers_of_the_environment_are_numbers(
    compose: Callable[..., Composed], monkeypatch: pytest.MonkeyPatch, override: str, value: float
) -> None:
    """Where hpcexp's schema has one, in every section."""
    monkeypatch.setenv("OWN", "1e-2")
    monkeypatch.setenv("OWN_INT", "32")
    found: object = compose(override).config
    for part in override.partition("=")[0].split("."):
        found = found[part]  # type: ignore[index]
    assert (value, type(value)) == (found, type(found))


@pytest.mark.parametrize("table", ["{1: a, 2: b}", "{true: a, x: b}", "{1: a, x: b, 2.5: c}", "{1: {x: a, 2: b}}"])
def test_mappings_may_have_keys_of_any_type(own: Path, table: str) -> None:
    """They are as they are in the plan, its identity and what is read of it."""
    write_conf(own, {"aside/x.yaml": f"t: {table}\n"})
    write_conf(own, {"model/own.yaml": "_target_: own_free_net.Net\ntable: ${aside.t}\n"})
    plans = []
    for n in range(2):
        plans.append(prepare(Composer(own).compose(["aside=x"]), own, ["hpcexp"]))
        save_plan(plans[n], own / "plan.yaml")
    loaded = load_plan(own / "plan.yaml")
    assert repr(plans[0].config["model"]["table"]) == repr(loaded.config["model"]["table"])
    assert plans[0].signature == plans[1].signature
    assert digest(plans[0]) == digest(loaded)

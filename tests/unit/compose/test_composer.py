"""From the command line and config files to one configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers import Said, write_conf

from hpcexp.compose.composer import Composed, Composer
from hpcexp.compose.sources import conf_dirs, describe, packaged_conf
from hpcexp.errors import ConfigError


def test_nothing_said_is_the_default_experiment(compose: Callable[..., Composed]) -> None:
    """Plain, resolved data without Hydra's own node."""
    made = compose()
    assert ("digits_mlp", "digits_mlp") == (made.config["name"], made.config["tracking"]["experiment"])
    assert "hydra" not in made.config
    assert () == made.overrides
    assert {"model": "mlp", "optimizer": "adamw"}.items() <= made.choices.items()
    assert "debug" not in made.choices


def test_an_experiment_counts_less_than_the_command_line(compose: Callable[..., Composed], project: Path) -> None:
    """Group by group and key by key."""
    content = "# @package _global_\ndefaults:\n  - override /model: cnn\nname: x\nseed: 7\noptimizer:\n  lr: 0.5\n"
    write_conf(project, {"experiment/x.yaml": content})
    made = compose("experiment=x", "seed=8")
    assert ("cnn", 8, 0.5) == (made.choices["model"], made.config["seed"], made.config["optimizer"]["lr"])
    assert "mlp" == compose("experiment=x", "model=mlp").choices["model"]


def test_own_config_files_add_to_the_packaged_ones(compose: Callable[..., Composed], project: Path) -> None:
    """An option of the project stands beside those of hpcexp."""
    write_conf(project, {"trainer/long.yaml": "max_epochs: 500\nmonitor: val/loss\nmode: min\n"})
    assert 500 == compose("trainer=long").config["trainer"]["max_epochs"]
    assert 30 == compose("trainer=default").config["trainer"]["max_epochs"]


def test_own_config_files_shadow_the_packaged_ones(compose: Callable[..., Composed], project: Path) -> None:
    """File by file."""
    write_conf(project, {"trainer/default.yaml": "max_epochs: 2\nmonitor: val/loss\nmode: min\n"})
    assert 2 == compose().config["trainer"]["max_epochs"]


def test_a_config_dir_shadows_the_project(project: Path) -> None:
    """What is nearer to the command line counts."""
    write_conf(project, {"launch/local.yaml": "name: dry\n"})
    own = project / "elsewhere"
    own.mkdir()
    (own / "config.yaml").write_text((packaged_conf() / "config.yaml").read_text().replace("model: mlp", "model: vit"))
    made = Composer(project, own).compose([])
    assert ("vit", "dry") == (made.choices["model"], made.config["launch"]["name"])


def test_a_checkout_does_not_count_its_own_files_twice() -> None:
    """There, conf/ in the working directory is the packaged one."""
    assert (packaged_conf(),) == conf_dirs(packaged_conf().parent, None)


def test_config_files_are_named_as_a_person_would(project: Path) -> None:
    """Relative to the project, or as part of hpcexp."""
    assert "conf/model/own.yaml" == describe(project / "conf/model/own.yaml", project)
    assert "hpcexp/conf/model/mlp.yaml" == describe(packaged_conf() / "model/mlp.yaml", project)


def test_arguments_of_targets_need_no_plus(compose: Callable[..., Composed]) -> None:
    """What a target takes need not stand in its file; the override stays as it was given."""
    made = compose(
        "model.in_shape=[3]", "optimizer.amsgrad=true", "tracking.tags.team=vision", "task.loss.reduction=sum"
    )
    assert ([3], True) == (made.config["model"]["in_shape"], made.config["optimizer"]["amsgrad"])
    assert {"team": "vision"} == made.config["tracking"]["tags"]
    assert "model.in_shape=[3]" == made.overrides[0]


def test_values_that_are_looked_up_have_the_type_of_their_key(
    compose: Callable[..., Composed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment variable is text, and a seed a number; both are known wherever it is referred to."""
    monkeypatch.setenv("SEED", "11")
    made = compose("seed=${oc.env:SEED}", "trainer.patience=${seed}")
    assert (11, 11) == (made.config["seed"], made.config["trainer"]["patience"])


def test_an_experiment_cannot_refer_to_hydras_node(compose: Callable[..., Composed]) -> None:
    """It would be another one in a sweep than alone."""
    with pytest.raises(ConfigError, match=r"notes: .*'hydra.job.name' not found"):
        compose("notes=${hydra.job.name}")


def test_overrides_that_do_not_compose_are_told_beside_the_rest(compose: Callable[..., Composed]) -> None:
    """So that the checks see everything else."""
    made = compose("sed=2", "model=cnn", "trainer.max_epochs=x", "trainer.patience=3")
    assert ("cnn", 3, 30) == (
        made.choices["model"],
        made.config["trainer"]["patience"],
        made.config["trainer"]["max_epochs"],
    )
    assert ["sed=2", "trainer.max_epochs=x"] == [p.partition(":")[0] for p in made.problems]


def test_files_that_do_not_compose_are_an_error(compose: Callable[..., Composed], project: Path) -> None:
    """There is nothing to check without them."""
    write_conf(project, {"config.yaml": "defaults:\n  - schema\n  - nothing: here\n"})
    with pytest.raises(ConfigError, match="nothing/here"):
        compose()


@pytest.mark.parametrize(
    "argv",
    [
        ("model=cnn", "-c", "job", "-p", "model"),
        ("-c", "job", "model=cnn", "-p", "model"),
        ("--package", "model", "--cfg", "job", "model=cnn"),
    ],
)
def test_flags_may_stand_anywhere(hpcexp: Callable[..., Said], argv: tuple[str, ...]) -> None:
    """Before, between and after the overrides."""
    said = hpcexp("plan", *argv)
    assert (0, "") == (said.status, said.err)
    head, content = said.out.split("\n", 1)
    assert "# @package model" == head
    assert "hpcexp.models.cnn.CNN" == yaml.safe_load(content)["_target_"]


def test_the_whole_configuration_is_shown(hpcexp: Callable[..., Said]) -> None:
    """As YAML; interpolations as they stand, or resolved where asked."""
    assert "${name}" == yaml.safe_load(hpcexp("train", "--cfg", "job").out)["tracking"]["experiment"]
    assert "digits_mlp" == yaml.safe_load(hpcexp("plan", "-c", "job", "--resolve").out)["tracking"]["experiment"]
    assert "0.003\n" == hpcexp("plan", "-c", "job", "-p", "optimizer.lr").out


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("defaults-tree", "model: mlp"),
        ("searchpath", "structured://"),
        ("defaults", "optimizer/adamw"),
        ("plugins", "Launcher"),
    ],
)
def test_hydra_explains_itself(hpcexp: Callable[..., Said], kind: str, word: str) -> None:
    """`--info` as in any Hydra application."""
    said = hpcexp("plan", "--info", kind)
    assert 0 == said.status
    assert word in said.out


def test_the_shell_learns_to_complete(hpcexp: Callable[..., Said]) -> None:
    """`-sc install=bash` prints what the shell is to evaluate."""
    said = hpcexp("-sc", "install=bash")
    assert 0 == said.status
    assert "complete" in said.out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hpcexp tr", "train"),
        ("hpcexp train mod", "model="),
        ("hpcexp train model=", "model=cnn"),
        ("hpcexp plan model=cnn optimizer.l", "optimizer.lr="),
        ("hpcexp runs ", ""),
    ],
)
def test_tab_completes(hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, line: str, expected: str) -> None:
    """Verbs, and behind those that compose: groups, options and keys."""
    monkeypatch.setenv("COMP_LINE", line)
    said = hpcexp("-sc", "query=bash")
    assert 0 == said.status
    assert expected in said.out.split() or expected == said.out

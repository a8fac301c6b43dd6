"""Interpolations by resolvers: Hydra's choices, and functions of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said, write_conf, write_module

from hpcexp.compose.composer import Composed, Composer
from hpcexp.compose.many import Many

NAMES = "# @package _global_\nname: ${hydra:runtime.choices.model}_run\nnotes: ${hydra:runtime.cwd}/x\n"


def test_choices_and_directory_of_hydra_are_known(project: Path, compose: Callable[..., Composed]) -> None:
    """In one run and in each job of a sweep."""
    write_conf(project, {"experiment/x.yaml": NAMES})
    made = compose("experiment=x", "model=cnn")
    assert ("cnn_run", f"{project}/x") == (made.config["name"], made.config["notes"])
    many = Many(Composer(project))
    names = [many.compose(["experiment=x", f"model={model}", "seed=2"]).config["name"] for model in ("cnn", "mlp")]
    assert ["cnn_run", "mlp_run"] == names


@pytest.mark.parametrize("path", ["runtime.output_dir", "job.num", "sweep.dir", "runtime.choices.nothing"])
def test_what_only_a_job_of_hydras_knows_is_refused(hpcexp: Callable[..., Said], path: str) -> None:
    """With what is known."""
    said = hpcexp("plan", f"notes=${{hydra:{path}}}")
    assert 2 == said.status
    assert f"hydra:{path} is not known when a run is planned" in said.err


def test_the_project_names_its_resolvers(
    project: Path, hpcexp: Callable[..., Said], compose: Callable[..., Composed]
) -> None:
    """In pyproject.toml; what they give is in the plan."""
    code = (
        "from omegaconf import OmegaConf\nOmegaConf.register_new_resolver('own_half', lambda n: n // 2, replace=True)\n"
    )
    write_module(project, "own_resolvers", code)
    sys.path.insert(0, str(project))
    (project / "pyproject.toml").write_text('[tool.hpcexp]\nresolvers = "own_resolvers"\n')
    assert 21 == compose("seed=${own_half:42}").config["seed"]
    assert "base-s21" in hpcexp("plan", "-m", "seed=${own_half:42}").out


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('resolvers = "nowhere.resolvers"', ["resolvers=nowhere.resolvers: could not be imported"]),
        ('resolver = "own"', ["has no key 'resolver'"]),
        ("resolvers = [", ["this is not TOML"]),
    ],
)
def test_resolvers_that_cannot_be_had_are_an_error(
    project: Path, hpcexp: Callable[..., Said], table: str, words: list[str]
) -> None:
    """That names the file."""
    (project / "pyproject.toml").write_text(f"[tool.hpcexp]\n{table}\n")
    said = hpcexp("plan")
    assert 2 == said.status
    assert all(word in said.err for word in ["pyproject.toml: ", *words])

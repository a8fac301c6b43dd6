"""Every file of conf/: planned, headed, built and documented."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import REPOSITORY, Said, python

from hpcexp.cli.shared.config_reference import explain, groups, keys, options, page, sections, write_pages
from hpcexp.compose.composer import Composed, Composer
from hpcexp.compose.sources import packaged_conf
from hpcexp.planner import prepare
from hpcexp.schema.keys import OWN_KEYS, Config
from hpcexp.schema.settings import without
from hpcexp.targets.instantiate import fill, instantiate, resolve
from hpcexp.targets.nodes import target_nodes

CONF = packaged_conf()
FILES = sorted(CONF.rglob("*.yaml"))
TARGET_FILES = [f for f in FILES if "_target_:" in f.read_text() and f.parent.name in Config.__dataclass_fields__]

COMPANIONS = {
    "data=images_folder": ["data.root=pictures"],
    "data=synthetic": [],
    "scheduler=onecycle": ["optimizer=sgd"],
    "task=regression": ["data=synthetic", "data.num_classes=null"],
    "task=multilabel": ["data=synthetic", "data.multiple=true"],
    "launch=torchrun": ["launch.nodes=2", "launch.rdzv=ada:29400"],
    "strategy=ddp": ["hardware=cpu", "hardware.devices=[0,1]"],
}
"""What an option needs beside it, as the head of its file says."""


def name(file: Path) -> str:
    """`model=cnn`, `hydra/sweeper=optuna`; `config` for the primary file."""
    return f"{file.parent.relative_to(CONF)}={file.stem}" if file.parent != CONF else file.stem


@pytest.fixture
def pictures(project: Path) -> Path:
    """A picture in each of two classes and three splits."""
    from PIL import Image

    for split in ("train", "val", "test"):
        for cls in ("cat", "dog"):
            place = project / "pictures" / split / cls
            place.mkdir(parents=True)
            for i in range(64):
                Image.new("RGB", (8, 8)).save(place / f"{i}.png")
    return project


def asked(file: Path) -> list[str]:
    """The overrides that choose an option."""
    return [name(file), *COMPANIONS.get(name(file), [])] if file.parent != CONF else []


ELSEWHERE = ("hardware=gpu", "data=images_folder", "hydra/sweeper=optuna")
"""Planned by a test of their own: on a machine with GPUs, with pictures, as a multirun."""


@pytest.mark.parametrize("file", [f for f in FILES if name(f) not in ELSEWHERE], ids=name)
def test_every_file_is_planned(compose: Callable[..., Composed], project: Path, file: Path) -> None:
    """Without a problem, in a project of its own."""
    assert prepare(compose(*asked(file)), project, []).experiment.startswith("digits_")


def test_pictures_are_planned(pictures: Path) -> None:
    """Where there are some."""
    plan = prepare(Composer(pictures).compose(["data=images_folder", *COMPANIONS["data=images_folder"]]), pictures, [])
    assert plan.data is not None
    assert ("cat", "dog") == plan.data.class_names


def test_gpus_are_planned_where_there_are_some(compose: Callable[..., Composed], project: Path) -> None:
    """On a machine that need not be this one."""
    from hpcexp.hardware.machine import Machine

    plan = prepare(compose("hardware=gpu"), project, [], Machine("server", num_cores=8, num_gpus=2))
    assert (0, 1) == plan.topology.device_ids


@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_file_says_what_it_is_for(file: Path) -> None:
    """First what it is, then how it is used: with a command that names the option."""
    header = [line for line in file.read_text().split("\n") if line.startswith("#") and "@package" not in line]
    assert header[0].endswith((".", ".)", "?", "."))
    [use, *_] = [line for line in header if line.startswith("# Use:")]
    assert re.match(r"# Use:   hpcexp train ", use)


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != CONF and f.parent.name != "tracking"], ids=name)
def test_every_command_in_a_header_names_the_option_or_its_group(file: Path) -> None:
    """`Use:` of a file is about that file."""
    uses = [line for line in file.read_text().splitlines() if line.startswith("# Use:")]
    assert all(f"{file.parent.name}=" in line or f"{file.parent.name}." in line for line in uses)


@pytest.mark.parametrize("file", TARGET_FILES, ids=name)
def test_every_target_builds(compose: Callable[..., Composed], pictures: Path, file: Path) -> None:
    """With the arguments of its file and what hpcexp fills in."""
    section = file.parent.name
    config = compose(*asked(file)).config
    for path, node in target_nodes(config[section], section):
        built = build(path, without(node, OWN_KEYS.get(path, frozenset())))
        expected = resolve(node["_target_"], path)
        assert not inspect.isclass(expected) or isinstance(built, expected)


def build(path: str, node: dict[str, Any]) -> Any:
    """What the job would build of a node."""
    import torch

    weights = [torch.nn.Parameter(torch.ones(1))]
    if path == "optimizer":
        return instantiate(node, weights, path=path)
    if path == "scheduler":
        optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
        node = fill(node, path, total_steps=10, steps_per_epoch=5, mode="max")
        return instantiate(node, optimizer, path=path)
    return instantiate(fill(node, path, in_shape=(1, 8, 8), num_classes=10), path=path)


def test_config_pages_are_those_of_the_schema(tmp_path: Path) -> None:
    """`make docs` was run after the last change."""
    write_pages(tmp_path)
    written = REPOSITORY / "docs" / "config"
    expected = {f.name: f.read_text() for f in tmp_path.iterdir()}
    assert expected == {f.name: f.read_text() for f in written.iterdir()}


def test_the_pages_can_be_written_from_a_shell(tmp_path: Path) -> None:
    """`python -m hpcexp.cli.shared.config_reference DIR`, which is what `make docs` does."""
    said = python(
        "import runpy, sys; sys.argv[1:] = ['pages']\n"
        "runpy.run_module('hpcexp.cli.shared.config_reference', run_name='__main__')",
        tmp_path,
    )
    assert (0, "", "") == (said.status, said.out, said.err)
    assert (tmp_path / "pages" / "README.md").exists()


def test_every_group_and_section_has_a_page(tmp_path: Path) -> None:
    """And the index names them all."""
    write_pages(tmp_path)
    topics = {*groups([packaged_conf()]), *filter(None, sections())}
    assert {*topics, "README"} == {f.stem for f in tmp_path.iterdir()}
    index = (tmp_path / "README.md").read_text()
    assert [] == [t for t in topics if f"[{t}]({t}.md)" not in index]


@pytest.mark.parametrize("section", sections())
def test_every_key_of_the_schema_is_documented(section: str) -> None:
    """By the docstring under its field."""
    documented = {k.name.rpartition(".")[2] for k in keys(section)}
    fields = [f.name for f in dataclasses.fields(sections()[section])]
    own = {f for f in fields if section or f not in sections()}
    assert own - {"model"} <= documented


def test_options_are_explained_by_their_headers() -> None:
    """In pages and on the command line."""
    assert "Use:   hpcexp train model=cnn" in options("model", [packaged_conf()])["cnn"]
    assert "### `model=cnn`" in page("model")
    assert "trainer.max_epochs" in explain("trainer.max_epochs", [packaged_conf()]).splitlines()[0]


def test_help_lists_groups_and_sections(hpcexp: Callable[..., Said]) -> None:
    """With their options; more about each by its name."""
    said = hpcexp("help")
    assert 0 == said.status
    assert re.search(r"model +cnn mlp resnet vit", said.out)
    assert "model=cnn" in hpcexp("help", "model").out
    assert "(int, ≥ 1" in hpcexp("help", "trainer.max_epochs").out


def test_help_tells_of_one_option(hpcexp: Callable[..., Said]) -> None:
    """Its file, and the keys that it sets; a key with a value is told of as the key alone."""
    said = hpcexp("help", "strategy=ddp").out
    assert said.startswith("strategy=ddp\n    # DistributedDataParallel: ")
    assert "strategy.bucket_cap_mb  (float, > 0; default" in said
    assert "strategy.min_params" not in said
    assert "trainer.limit_train_batches  (" in hpcexp("help", "debug=fast").out
    assert hpcexp("help", "trainer.max_epochs") == hpcexp("help", "trainer.max_epochs=3")
    wrong = hpcexp("help", "strategy=dpp")
    assert 2 == wrong.status
    assert "strategy=dpp: there is no option 'dpp' in strategy.\nFix: Did you mean 'ddp'? Options: auto" in wrong.err
    assert "did you mean 'strategy'?" in hpcexp("help", "strateg=ddp").err


def test_defaults_of_the_schema_are_not_said_twice() -> None:
    """A group's file says what the schema leaves open or what differs from it."""
    twice = []
    for file in FILES:
        section = sections().get(file.parent.name)
        content = yaml.safe_load(file.read_text()) or {}
        if section is None or file.parent.name in ("optimizer", "scheduler", "data", "strategy"):
            continue
        fields: dict[str, Any] = {f.name: f for f in dataclasses.fields(section)}
        twice += [f"{name(file)}: {k}" for k, v in content.items() if k in fields and fields[k].default == v]
    assert [] == twice

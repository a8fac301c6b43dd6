"""Jobs composed together come to what Hydra makes of each of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers import write_conf
from hydra.types import RunMode
from omegaconf import OmegaConf

from hpcexp.compose.composer import Composer, composed
from hpcexp.compose.many import Many
from hpcexp.errors import ConfigError

PACKAGED = [
    "",
    "optimizer.lr=0.1 seed=3",
    "optimizer.lr=1 model.dropout=1e-1 data.val_fraction='0.2'",
    "trainer.max_epochs='7' trainer.patience=null hardware.devices=[0,1] hardware.num_nodes=2",
    "launch.nodes=3 task.monitor=val/loss trainer.mode=min",
    "task.monitor=val/loss trainer.monitor=train/loss",
    'name=other notes="What\'s in it?" tracking.experiment=own',
    "tracking.experiment=${name}_${seed} name=x",
    "tracking.tags={a:1,b:[2,{c:d}]} tracking.tags.team=vision",
    "model=cnn model.channels=[8,16] seed=2",
    "model=cnn optimizer=sgd optimizer.momentum=0.5 optimizer.nesterov=false",
    "optimizer.momentum=0.5 optimizer=sgd",
    "experiment=digits_cnn data.augment.degrees=5 optimizer.lr=0.2",
    "experiment=digits_cnn data.augment={_target_:hpcexp.data.augment.RandomAffine,degrees:3}",
    "optimizer.amsgrad=true +optimizer.foreach=false ++optimizer.capturable=false",
    "model.in_shape=[3] task.loss.reduction=sum trainer.extra.detect_anomaly=true",
    "callbacks.stop={_target_:a.b.C,x:{y:[1,2]}} callbacks.stop.x.z=${seed} seed=4",
    "~optimizer.fused optimizer.fused=true",
    "++optimizer.betas=[0.8,0.9] ~optimizer.betas",
    "~optimizer.weight_decay=0.01",
    "+debug=fast",
    "debug=fast trainer.limit_train_batches=3",
    "~experiment name=bare",
    "launch=torchrun",
    "launch=torchrun launch.nodes=2 launch.rdzv=a:1",
    "model.hidden=[${seed},2] notes=${model.hidden}",
    "notes=${oc.env:HOME}",
    "notes=${hydra.job.name}",
    "hydra.job.name=z seed=5",
    "seed=5 hydra.job.name=z",
    "hydra/launcher=basic seed=6",
    "run.root=elsewhere run.label=a/b",
    "data.global_batch_size=128 data.eval_batch_size=null",
]
MISTAKES = [
    "sed=2 optimizer.lr=0.1",
    "trainer.max_epochs=x trainer.patience=3",
    "~optimizer.nothing",
    "seed=[",
    "model.hidden.0=8",
    "notes=${nothing}",
]
CONF = {
    "model/own.yaml": """
        _target_: hpcexp.models.mlp.MLP
        hidden: [8, "${seed}"]
        dropout: ${oc.env:NO_SUCH_VARIABLE,0.25}
        in_shape: ${data.input_shape}
        twice: {a: "${..dropout}", b: "${twice:${seed}}"}
    """,
    "optimizer/linked.yaml": """
        _target_: torch.optim.AdamW
        lr: ${divided:${data.global_batch_size},1000}
        betas: ${.other}
        other: [0.5, 0.6]
    """,
    "experiment/linked.yaml": """
        # @package _global_
        defaults:
          - override /model: own
          - override /optimizer: linked
          - override /data: synthetic
        name: linked_${seed}
        seed: ${oc.env:NO_SUCH_VARIABLE,11}
        scheduler: ${optimizer}
        callbacks:
          copy: ${model}
          list: ["${seed}", {x: "${optimizer.lr}"}]
        trainer:
          monitor: val/${task.metrics.0}
    """,
    "notes/short.yaml": "# @package _global_\nnotes: short\n",
    "sizes/small.yaml": "# @package _global_\nmodel:\n  hidden: [4]\n",
    "config.yaml": """
        defaults:
          - schema
          - hardware: cpu
          - data: digits
          - task: classification
          - model: mlp
          - optimizer: adamw
          - scheduler: cosine
          - strategy: auto
          - trainer: default
          - tracking: "off"
          - launch: local
          - _self_
          - optional sizes: ${model}
          - experiment: null
        name: own
        hydra:
          sweeper:
            params: {seed: "1,2"}
    """,
}
PROJECT = [
    "",
    "seed=3",
    "model=own",
    "model=own data=synthetic data.input_shape=[1,2] model.dropout=0.5",
    "experiment=linked",
    "experiment=linked seed=2 optimizer.lr=0.1",
    "experiment=linked scheduler.lr=3",
    "experiment=linked scheduler=cosine",
    "experiment=linked ++scheduler={a:1}",
    "experiment=linked callbacks.copy.hidden=[1]",
    "experiment=linked callbacks.list=[1,2] data.input_shape=[7]",
    "experiment=linked model.hidden=[1] name=z",
    "experiment=linked ~optimizer.betas",
    "experiment=linked model={twice:{c:3}}",
    "optimizer=linked data.global_batch_size=500",
    "optimizer=linked optimizer.other=[0.1,0.2] optimizer.betas=[1,2]",
    "notes=hello +sizes=small",
]


def outcome(compose: Any, line: str) -> str:
    """What a composition gives, with types and order, or what it says."""
    try:
        return repr(compose(line.split(" ") if line else []))
    except ConfigError as e:
        return f"{type(e).__name__}: {e}"


@pytest.fixture(scope="module", autouse=True)
def _resolvers() -> Iterator[None]:
    """Of a user's own, as a module in the project may register them."""
    OmegaConf.register_new_resolver("twice", lambda number: 2 * number)
    OmegaConf.register_new_resolver("divided", lambda a, b: a / b, use_cache=True)
    yield
    OmegaConf.clear_resolver("twice")
    OmegaConf.clear_resolver("divided")


@pytest.fixture
def own(project: Path) -> Path:
    """A project whose files refer to each other in every way."""
    write_conf(project, CONF)
    return project


@pytest.mark.parametrize("lines", [PACKAGED, MISTAKES], ids=["packaged", "mistakes"])
def test_jobs_come_to_what_hydra_makes_of_each(project: Path, lines: list[str]) -> None:
    """In any order, with types, order and messages; jobs leave nothing behind for the next."""
    check_equal(Composer(project), lines)


def test_jobs_of_a_project_come_to_what_hydra_makes_of_each(own: Path) -> None:
    """Interpolations that jobs reach into, resolvers, groups that choose others, sections that are copies of others."""
    check_equal(Composer(own), PROJECT)


def check_equal(composer: Composer, lines: Sequence[str]) -> None:
    many = Many(composer)
    by_hydra = cache(lambda overrides: Composer.compose(composer, list(overrides), in_sweep=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composer, "compose", lambda overrides, **_: by_hydra(tuple(overrides)))
        for line in random.Random(0).sample(lines, len(lines)):
            assert outcome(lambda overrides: by_hydra(tuple(overrides)), line) == outcome(many.compose, line), line


def test_jobs_come_to_what_hydras_sweepers_compose(own: Path) -> None:
    """With the overrides of Hydra's node that all jobs of a sweep share."""
    composer = Composer(own)
    shared = ["hydra.mode=MULTIRUN", "hydra/launcher=basic", "hydra/sweeper=optuna"]
    master = composer.load([*shared, "seed=1,2"], RunMode.MULTIRUN)
    many = Many(composer, shared, master)
    for job in (["seed=1"], ["seed=2", "model=own", "data=synthetic"], ["++optimizer.lr=3"]):
        assert composed(composer.loader.load_sweep_config(master, job)) == many.compose(job)


def test_files_are_read_once_for_each_choice_of_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs choose them, also where an argument stands in no file."""
    composer, loads = Composer(project), []
    load = composer.loader.load_configuration
    monkeypatch.setattr(composer.loader, "load_configuration", lambda *a, **k: loads.append(a[1]) or load(*a, **k))
    many = Many(composer)
    for seed in range(20):
        for model in ("mlp", "cnn"):
            many.compose([f"seed={seed}", "optimizer.amsgrad=true", f"model={model}", "trainer.monitor=val/loss"])
    assert [["model=mlp"], ["model=cnn"]] == loads


def test_jobs_share_nothing_that_can_be_changed(project: Path) -> None:
    """Whoever changes one job's configuration changes no other's."""
    many = Many(Composer(project))
    first = many.compose(["seed=1"])
    before = repr(many.compose(["seed=1"]))
    first.config["model"]["hidden"].append(3)
    first.config["optimizer"]["lr"] = 7
    first.choices["model"] = "other"
    assert before == repr(many.compose(["seed=1"]))

"""What hpcexp says where Lightning gives advice that is meant for its own Trainer, and where pickling fails."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_recording import Base
from torch.utils.data import DataLoader, TensorDataset
from training_plans import digits_plan

from hpcexp.rundir import RunDir
from hpcexp.targets.source_code import Parameters, parameters
from hpcexp.targets.trainer_arguments import SET_BY_HPCEXP, TRAINER, extra_problems, in_hpcexps_words
from hpcexp.train.engine.causes import cause_of
from hpcexp.train.engine.trainer import _arguments
from hpcexp.train.runtime.log_filters import quiet


def test_the_arguments_that_hpcexp_sets_are_those_of_the_table(tmp_path: Path) -> None:
    """And each of them is one of the Trainer's, read from its source."""
    found = parameters(TRAINER)
    assert isinstance(found, Parameters)
    assert SET_BY_HPCEXP.keys() <= found.types.keys()
    made = {*_arguments(digits_plan(tmp_path), RunDir(tmp_path)), "callbacks", "logger", "enable_checkpointing"}
    assert made == set(SET_BY_HPCEXP)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"gradient_clip_algoritm": "norm"}, "Did you mean 'gradient_clip_algorithm'"),
        (
            {"max_epochs": 3},
            "hpcexp sets this argument of the Trainer itself.\nFix: leave it out; see trainer.max_epochs",
        ),
        ({"use_distributed_sampler": True}, "hpcexp shards the data of every rank itself"),
        ({"max_time": "00:01:00:00"}, "trainer.max_duration=2h"),
        ({"inference_mode": "yes"}, "trainer.extra.inference_mode=yes: not true or false."),
    ],
)
def test_extra_arguments_are_held_against_the_source_of_the_trainer(extra: dict[str, Any], said: str) -> None:
    """Unknown ones, those that hpcexp sets, and those of another type."""
    [problem] = extra_problems(extra)
    assert said in problem


def test_extra_arguments_that_the_trainer_takes_are_no_problem() -> None:
    """Of any of its types."""
    assert [] == extra_problems({"detect_anomaly": True, "val_check_interval": 0.5, "gradient_clip_algorithm": "value"})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "either by setting the string value `strategy='ddp_find_unused_parameters_true'` or by setting the flag "
            "in the strategy with `strategy=DDPStrategy(find_unused_parameters=True)`.",
            "In hpcexp: strategy.find_unused_parameters=true.",
        ),
        (
            "or set `Trainer(use_distributed_sampler=False)`.",
            "In hpcexp: use_distributed_sampler by nothing: hpcexp shards",
        ),
        ("Remove `Trainer(gradient_clip_val=1.0)`", "In hpcexp: gradient_clip_val by trainer.gradient_clip_val."),
        ("`Trainer(limit_val_batches)` must be", "In hpcexp: limit_val_batches by trainer.limit_eval_batches."),
        ("my own devices are broken", ""),
    ],
)
def test_advice_for_lightnings_trainer_is_given_in_hpcexps_words(message: str, words: str) -> None:
    """Other messages stay as they are."""
    assert in_hpcexps_words(message).startswith(words)
    assert bool(words) == bool(in_hpcexps_words(message))


def test_lightnings_own_messages_are_understood(tmp_path: Path) -> None:
    """As it raises them."""
    quiet()
    batches = DataLoader(TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long)), batch_size=4)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = pl.Trainer(**settings, val_check_interval=50, accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="check_val_every_n_epoch") as caught:
        trainer.fit(Base(), batches, batches)
    last = cause_of(caught.value).splitlines()[-1]
    assert last.startswith("In hpcexp: check_val_every_n_epoch by trainer.val_every_epochs or trainer.val_every_steps;")
    assert last.endswith("; val_check_interval by trainer.val_every_steps.")


@pytest.mark.filterwarnings("ignore:Got pickle error")
@pytest.mark.parametrize("samples", [lambda: None, threading.Lock()])
def test_what_cannot_be_sent_to_a_spawned_worker_is_named(samples: Any) -> None:
    """A lambda and a lock in a data set."""
    data = TensorDataset(torch.zeros(4, 1))
    data.held = samples  # type: ignore[attr-defined]
    loader = DataLoader(data, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)) as caught:
        next(iter(loader))
    assert "A DataLoader starts its workers afresh (spawn), and what they get must be picklable" in cause_of(
        caught.value
    )
    assert multiprocessing.active_children() == []


def test_other_errors_of_the_same_kind_are_left_alone() -> None:
    """An attribute that is missing has nothing to do with pickling."""
    with pytest.raises(AttributeError) as caught:
        object().nothing  # type: ignore[attr-defined]  # noqa: B018
    assert "AttributeError: 'object' object has no attribute 'nothing'" == cause_of(caught.value)

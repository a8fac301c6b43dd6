"""Plans of small digits runs, made by hand, and the processes that run them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers import wait_until
from record_support import default_config

from hpcexp.checks.batch import steps
from hpcexp.data.digits import Digits
from hpcexp.launch.supervisor.forkserver import start_warm
from hpcexp.launch.supervisor.ranks import Ranks
from hpcexp.plan import VERSION, Batch, Plan, Topology, save_plan
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import read_note
from hpcexp.schema import keys
from hpcexp.schema.settings import Settings


def digits_config(**overrides: Any) -> dict[str, Any]:
    """The configuration of a two-epoch digits run; overrides are spelled `trainer__max_epochs=3`."""
    default = deepcopy(default_config())
    config: dict[str, Any] = {
        **default,
        "name": "digits_mlp",
        "seed": 1,
        "data": {"_target_": "hpcexp.data.digits.Digits", "global_batch_size": 64},
        "model": {"_target_": "hpcexp.models.mlp.MLP", "hidden": [32]},
        "task": {
            "_target_": "hpcexp.train.tasks.classification.Classification",
            "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
            "metrics": ["acc"],
            "monitor": "val/acc",
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.003, "fused": True},
        "scheduler": {"_target_": "hpcexp.train.optim.schedules.warmup_cosine", "interval": "step", "warmup": 0.1},
        "strategy": {"name": "auto"},
        "trainer": {**asdict(keys.Trainer()), "max_epochs": 2, "monitor": "val/acc", "mode": "max"},
        "checkpoint": asdict(keys.Checkpoint()),
        "launch": {**keys.defaults(keys.Launch), "_target_": "hpcexp.launch.launchers.local.Local"},
        "callbacks": {},
    }
    for name, value in overrides.items():
        *sections, key = name.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[key] = value
    return config


def digits_plan(run_dir: Path, world_size: int = 1, **overrides: Any) -> Plan:
    """The plan of `digits_config(**overrides)` on CPU ranks."""
    config = digits_config(**overrides)
    facts, size = Digits().facts(), config["data"]["global_batch_size"]
    accumulate = config["trainer"]["accumulate_grad_batches"]
    batch = Batch(size, size // world_size // accumulate, accumulate)
    several = world_size > 1
    return Plan(
        version=VERSION,
        name="run",
        experiment="digits_mlp",
        run_dir=str(run_dir),
        signature="1" * 64,
        config=config,
        overrides=(),
        choices={},
        topology=Topology(
            "cpu", tuple(range(world_size)), 1, 1, "ddp" if several else "single", "gloo" if several else None
        ),
        batch=batch,
        steps=steps(Settings(config), batch, facts)[0],
        data=facts,
        num_params=None,
        tracking_uri=None,
        lineage={"project": str(Path(__file__).parent), "command": "", "host": "here", "code.digest": "0" * 64},
        warnings=(),
    )


def step_of(checkpoint: Path) -> int | None:
    """The optimizer step of a checkpoint; None where there is none."""
    note = read_note(checkpoint)
    return note and note.step


def run_job(plan: Plan) -> list[tuple[int, str]]:
    """Exit status and output of every rank: processes of their own, which take a warning for an error."""
    run_dir = Path(plan.run_dir)
    save_plan(plan, run_dir / "plan.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = plan.topology.world_size
    shared = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0} for rank in range(world)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "hpcexp.job", str(run_dir)],
            env={**os.environ, **{k: str(v) for k, v in rank.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@dataclass(frozen=True)
class Ended:
    """What became of a job."""

    statuses: list[int | None]
    outputs: list[str]
    told: list[dict[str, Any]]
    """What the ranks have told their supervisor."""


def run_warm(plan: Plan, meanwhile: Callable[[Ranks], None] = lambda ranks: None) -> Ended:
    """Run the plan to its end on warm ranks; `meanwhile` is called once they have begun."""
    run = RunDir(Path(plan.run_dir))
    save_plan(plan, run.plan)
    ranks = Ranks(plan, start_warm, {})
    try:
        meanwhile(ranks)
        wait_until(ranks.are_done, "the end of all ranks")
        told = os.read(ranks.events_fd, 1 << 16).splitlines()
        outputs = [run.rank_log(rank).read_text() for rank in range(len(ranks.processes))]
        return Ended([process.poll() for process in ranks.processes], outputs, [json.loads(line) for line in told])
    finally:
        ranks.close()

"""The typed configuration: every key hpcexp reads, its type, default and range.

The docstring under a field is its documentation, on the command line (`hpcexp help KEY`) and in `docs/config/`.
`model`, `data`, `optimizer`, `scheduler`, `strategy`, `launch` and `callbacks` carry a `_target_` and its arguments;
the keys that hpcexp itself reads there are the classes below named after them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

MISSING: Any = "???"

# Most classes below are never made, only read; what a dataclass generates beside them would cost planning 10 ms.


CLASSIFICATION_METRICS = ("acc", "top5")
REGRESSION_METRICS = ("mse", "mae")


def number(default: Any, **bounds: float) -> Any:
    """A numeric field with the range that the checks hold it to: `above`, `below`, `least`, `most`."""
    return field(default=default, metadata=bounds)


def choice(default: Any, *options: str) -> Any:
    """A field with a closed list of values."""
    return field(default=default, metadata={"options": options})


@dataclass(eq=False, repr=False)
class Hardware:
    """Which devices a job runs on."""

    accelerator: str = choice(MISSING, "auto", "cpu", "cuda")
    """`auto` takes CUDA devices where there are any, and the CPU otherwise."""
    devices: Any = MISSING
    """How many (`2`: of GPUs the least busy), which (`[0,2]`, counted as nvidia-smi does), `all`, or `auto`: one CPU
    process, or every GPU."""
    share: int | None = number(None, least=1)
    """Jobs that may be on a device at once, all of them by hpcexp. Empty: one on a GPU; on the CPU as many as are
    started, each with cores of its own while there are enough, and on any after that. A number on the CPU: as many jobs
    may have a core, each rank keeps to its own cores, and a job that finds none is refused; above 1, ranks and their
    threads may be more than the cores."""
    force: bool = False
    """Take a GPU also where processes compute on it that are not hpcexp's."""
    num_nodes: int = number("${launch.nodes}", least=1)
    """Machines the job runs on, each with `devices`."""
    threads_per_rank: int | None = number(None, least=1)
    """CPU threads a rank computes with; empty: the machine's cores divided by the job's ranks, or by its GPUs."""


@dataclass(eq=False, repr=False)
class Data:
    """What hpcexp reads of a data set beside the arguments of its `_target_`."""

    global_batch_size: int = number(MISSING, least=1)
    """Samples in one optimizer step over all ranks and accumulated batches."""
    eval_batch_size: int | None = number(None, least=1)
    """Samples in a validation or test batch on each rank; empty: as large as is sensible."""
    loader: str = choice("auto", "auto", "resident", "map")
    """`resident` holds the set as tensors and batches by index; `map` reads samples through workers; `auto` picks."""
    num_workers: int = number(0, least=0)
    """Processes that read samples, with `loader=map`."""
    fingerprint: str = choice("auto", "auto", "content", "listing")
    """What makes the data files other data: `content`, each byte, read once and again where a file has changed;
    `listing`, names, sizes and times; `auto` reads up to 32 GB in 500,000 files, and `hpcexp plan` says where it does
    not."""
    augment: Any = None
    """A callable (`_target_`) applied to every training batch on its device."""


@dataclass(eq=False, repr=False)
class Task:
    """What is learned: the loss, and the metrics that are reported beside it."""

    loss: dict[str, Any] = field(default_factory=dict)
    """`_target_` of the loss and its arguments."""
    metrics: list[str] = field(default_factory=list)
    """Names of metrics: acc, top5 (classification); mse, mae (regression)."""
    monitor: str = MISSING
    """Metric by which the task is judged; `trainer.monitor` follows it."""
    mode: str = choice(MISSING, "max", "min")
    """Whether more or less of it is better; `trainer.mode` follows it."""


@dataclass(eq=False, repr=False)
class Optimizer:
    """What hpcexp checks of an optimizer beside the arguments of its `_target_`."""

    lr: float = number(MISSING, above=0)
    """Learning rate at its highest point; a schedule scales it."""
    weight_decay: float = number(0.0, least=0)
    """Decay of the weights per step, scaled as the optimizer defines it."""
    momentum: float = number(0.0, least=0, most=1)
    """Momentum, where the optimizer has one."""


@dataclass(eq=False, repr=False)
class Scheduler:
    """What hpcexp reads of a learning-rate schedule beside the arguments of its `_target_`."""

    interval: str = choice("step", "step", "epoch")
    """Whether the schedule moves after every optimizer step or every epoch."""
    warmup: float = number(0.0, least=0, most=1)
    """Share of all steps over which the rate rises from zero, where the schedule has one."""


@dataclass(eq=False, repr=False)
class Strategy:
    """What hpcexp reads of a strategy beside the arguments of its `_target_`."""

    name: str = choice(MISSING, "auto", "single", "ddp", "fsdp", "custom")
    """`auto`: one process on one device, DDP on several. `fsdp`: weights and optimizer state are spread over them."""
    bucket_cap_mb: float = number(25.0, above=0)
    """ddp: size of the pieces that gradients are sent in, beside the computation of the rest."""
    find_unused_parameters: bool = False
    """ddp: let parameters be that a step's loss does not depend on; costs a walk through the graph at every step."""
    gradient_as_bucket_view: bool = True
    """ddp: keep gradients where they are sent from, which saves a copy of them."""
    static_graph: bool = False
    """ddp: promise that all steps use the same parameters in the same way, which saves looking."""
    compression: str = choice("none", "none", "fp16", "bf16", "powersgd")
    """ddp: what gradients are made smaller by before they are sent. `fp16`, `bf16` round them; `bf16` needs GPUs.
    `powersgd` sends matrices as products of two narrow ones (Vogels et al. 2019) and carries the error on to the next
    step. All change the result."""
    powersgd_rank: int = number(1, least=1)
    """ddp: columns of the narrow matrices of `powersgd`: more is more exact, and more to send."""
    powersgd_start: int = number(1000, least=2)
    """ddp: steps that are sent in full before `powersgd` begins; a run that is shorter never compresses."""
    min_params: int = number(100_000, least=1)
    """fsdp: parameters from which on a child of a Sequential or ModuleList is a unit, gathered together while it
    computes; the rest of the model is one more."""
    reshard_after_forward: bool = True
    """fsdp: free a unit's weights between forward and backward; costs gathering them twice."""


@dataclass(eq=False, repr=False)
class Trainer:
    """How long and how the model is trained."""

    max_epochs: int = number(MISSING, least=1)
    """Passes over the training data."""
    max_steps: int | None = number(None, least=1)
    """Optimizer steps after which training ends, if that comes before the epochs do."""
    precision: str = choice("32-true", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
    """Number format, as Lightning names it; `16-mixed` needs a GPU."""
    accumulate_grad_batches: int = number(1, least=1)
    """Batches per optimizer step on each rank; the global batch stays what `data.global_batch_size` says."""
    gradient_clip_val: float | None = number(None, above=0)
    """Norm that gradients are clipped to; empty: not clipped."""
    ema_decay: float | None = number(None, above=0, below=1)
    """Decay of the moving average of weights that is evaluated and kept; empty: none."""
    compile: bool = False
    """Compile the model with `torch.compile`: slower to start, faster on large models."""
    deterministic: bool = False
    """Use only kernels that give the same bits every time; fails where there is none."""
    val_every_epochs: int = number(1, least=1)
    """Epochs between two validations; the last epoch is always validated."""
    monitor: str = "${task.monitor}"
    """Metric that decides which checkpoint is best and when to stop early."""
    mode: str = choice("${task.mode}", "max", "min")
    """Whether more or less of `monitor` is better."""
    patience: int | None = number(None, least=1)
    """Validations without a better `monitor` after which training stops; empty: never."""
    min_delta: float = number(0.0, least=0)
    """How much better `monitor` must get to count against `patience`."""
    log_every_n_steps: int = number(50, least=1)
    """Steps between two writes of the journal; every step's values are in it all the same."""
    limit_train_batches: int | None = number(None, least=1)
    """Global batches of an epoch that are trained on; empty: all."""
    limit_eval_batches: int | None = number(None, least=1)
    """Batches that a validation or test counts; empty: all."""
    overfit_batches: int = number(0, least=0)
    """Train and validate on these first few global batches only, to see whether the model can learn at all."""
    profiler: str | None = choice(None, "simple", "advanced", "pytorch")
    """Lightning profiler whose report goes to the run directory."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `pytorch_lightning.Trainer`, spelled as there."""


@dataclass(eq=False, repr=False)
class Checkpoint:
    """When a run's state is written; best and last are always written together at the end."""

    every_s: float | None = number(60.0, above=0)
    """Seconds between two checkpoints; empty: not by time."""
    every_steps: int | None = number(None, least=1)
    """Optimizer steps between two checkpoints; empty: not by steps."""
    every_epochs: int | None = number(None, least=1)
    """Epochs between two checkpoints; empty: not by epochs."""
    async_write: bool = True
    """Write while training goes on, from a copy: takes as much host memory as a checkpoint has bytes (of rank 0 alone;
    for GPUs pinned). Where that is not free, and without it, training waits for the disk."""
    on_error: str = choice("continue", "continue", "stop")
    """What a checkpoint that cannot be written does, as on a full disk: training goes on with a warning and tries again
    when the next one is due, or stops. The last one must succeed in any case, and the one before stays intact."""


@dataclass(eq=False, repr=False)
class Tracking:
    """Where MLflow gets what the run directory holds."""

    enabled: bool = MISSING
    """Send metrics, parameters, artifacts and the model to MLflow."""
    uri: str | None = None
    """Tracking server or database; empty: `MLFLOW_TRACKING_URI`, or SQLite beside the runs."""
    experiment: str = "${name}"
    """MLflow experiment the run is listed under."""
    tags: dict[str, Any] = field(default_factory=dict)
    """Further tags of the MLflow run."""
    model: str = choice("auto", "auto", "always", "never")
    """Whether the trained weights are uploaded; `auto`: up to 100 MB, otherwise linked by path and digest."""
    system_every_s: float | None = number(10.0, above=0)
    """Seconds between two looks at what the job takes of CPU, memory, network, GPUs and power; empty: none."""
    wait_s: float = number(60.0, least=0)
    """Seconds that the command waits at its end for MLflow to have everything; `hpcexp sync` delivers the rest."""


@dataclass(eq=False, repr=False)
class Launch:
    """What hpcexp reads of every launcher beside the arguments of its `_target_`."""

    nodes: int = number(1, least=1)
    """Machines that the job runs on, each with `hardware.devices`."""
    beat_timeout_s: float = number(60.0, least=5, most=86400)
    """Seconds without a sign of life after which other machines consider the command that runs a job or drives a sweep
    dead, and repeat its jobs. On the machine itself its process decides."""
    grace_s: float = number(30.0, least=0)
    """Seconds that ranks have to end after they were asked to, before they are killed."""
    hang_s: float | None = number(1800.0, above=0)
    """Seconds without a step, or an evaluated batch, on any rank after which their stacks are saved and they are ended;
    before the first step at least 600; empty: never."""
    isolation: str = choice("auto", "auto", "warm", "process")
    """`warm`: ranks are forked from a server that has imported what they need; `process`: each starts from nothing;
    `auto`: warm where a command runs more than one job."""
    max_jobs: int | None = number(None, least=1)
    """Jobs of a sweep that run at once on this machine; empty: as many as find devices, on CPUs as many as there are
    cores for the threads of all their ranks."""
    retries: int = number(2, least=0)
    """Times in a row that a job of a sweep resumes by itself where a rank was killed from outside (`kill -9`, no
    memory) before it came to another checkpoint. After that it has failed, and the same command tries again."""
    progress: str = choice("auto", "auto", "bar", "lines", "none")
    """`auto`: a bar on a terminal, a line every few seconds elsewhere; of a sweep a table on a terminal, a line for
    each job that begins or ends elsewhere."""


@dataclass(eq=False, repr=False)
class Run:
    """Where results go."""

    root: str = "runs"
    """Directory of all run directories, and of the default MLflow store."""
    label: str = ""
    """A word of your own in the run's name; it does not change the run's identity."""
    pictures: bool = True
    """Draw curves and confusion matrix when the run has ended, which takes a second. Without them and without tracking,
    no process accompanies the run."""
    resume_from: str | None = None
    """An interrupted run of the same experiment on other devices, to go on from its last checkpoint: its directory, or
    the eight characters that its name ends in.
    The result is that of a run of its own up to rounding and, with dropout and augmentation, other random numbers."""


def options(section: type, name: str) -> tuple[str, ...]:
    """The values that a `choice` may have."""
    [found] = [field.metadata["options"] for field in fields(section) if field.name == name]
    return tuple(found)


def defaults(section: type) -> dict[str, Any]:
    """Key → default of a section's class."""
    return {field.name: field.default for field in fields(section)}


@dataclass(eq=False, repr=False)
class Config:
    """The whole experiment."""

    name: str = MISSING
    """Name of the experiment."""
    notes: str = ""
    """What this experiment is to find out; shown on the run's page in MLflow."""
    seed: int = number(1, least=0, most=2**32 - 1)
    """Seed of initial weights, shuffling, dropout and augmentation."""
    hardware: Hardware = field(default_factory=Hardware)
    data: dict[str, Any] = field(default_factory=dict)
    task: Task = field(default_factory=Task)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=Trainer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks by a name of your own, each with its `_target_`."""
    tracking: Tracking = field(default_factory=Tracking)
    launch: dict[str, Any] = field(default_factory=lambda: defaults(Launch))
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Search:
    """How a sweep finds its points where it does not run through all of them."""

    sampler: str = choice(MISSING, "tpe", "cmaes", "random", "grid", "nsga2")
    """How the next point is chosen: `tpe` learns from those before, `cmaes` too, for numbers alone; `random`; `grid`
    runs through all in a shuffled order; `nsga2` for several metrics."""
    pruner: str = choice("none", "none", "median", "asha", "hyperband")
    """Ends a training early that does worse than others at the same epoch."""
    storage: str | None = None
    """Database of the Optuna study, as `sqlite:///study.db` or `postgresql://user@host/name`; empty: a file in the
    sweep's directory."""
    study: str | None = None
    """Name of the study in its storage; empty: the sweep's."""
    seed: int | None = number(None, least=0, most=2**31 - 1)
    """Of the choice of points; empty: one that follows from the study's name."""


@dataclass(frozen=True)
class Budget:
    """Where a sweep stops, counted over all its continuations. What runs by then runs to its end."""

    trials: int | None = number(None, least=1)
    """Points that a search tries in all."""
    hours: float | None = number(None, above=0)
    """Hours of work on it."""
    core_hours: float | None = number(None, above=0)
    """Hours of its jobs on CPU cores."""
    gpu_hours: float | None = number(None, above=0)
    """Hours of its jobs on GPUs."""


@dataclass(eq=False, repr=False)
class SweepFile:
    """A sweep in a file, `sweeps/NAME.yaml`, that `hpcexp sweep NAME` starts or goes on with."""

    question: str = MISSING
    """What it is to find out; it heads the sweep's page in MLflow."""
    base: list[Any] = field(default_factory=list)
    """Overrides of every job: `[experiment=digits_mlp, trainer.max_epochs=10]`."""
    axes: dict[str, Any] = field(default_factory=dict)
    """Key or config group → its values: a list; text as after `-m` (`range(1,5)`, `glob(*)`); or, for a search,
    `{low: 1e-4, high: 0.1, log: true}` with `int: true` or `step: …`. All combinations are run, or searched."""
    points: list[Any] = field(default_factory=list)
    """Points given one by one, each a mapping `{key: value, …}`; every one is combined with the axes."""
    seeds: Any = None
    """Seeds that every point is run with: how many (`5` for 1 to 5), or which (`[1, 7]`); empty: that of the base."""
    metric: Any = None
    """What points are ranked by: `val/acc`, `test/loss`, a number of `summary.json` (`num_params`, `durations.fit_s`),
    or several: `{val/acc: max, num_params: min}`; empty: `trainer.monitor`."""
    mode: str | None = choice(None, "max", "min")
    """Whether more or less of `metric` is better; empty: as `trainer.mode` for `trainer.monitor`."""
    search: Search | None = None
    """How points are chosen, by its keys; empty: every combination."""
    budget: Budget = field(default_factory=Budget)
    """Where the sweep stops, by its keys."""
    on_failure: str = choice("continue", "continue", "stop")
    """What a failed job does to the others."""


OPEN_SECTIONS: dict[str, type] = {
    "data": Data,
    "optimizer": Optimizer,
    "scheduler": Scheduler,
    "strategy": Strategy,
    "launch": Launch,
}
"""Sections that take the arguments of their `_target_`, and the class of the keys hpcexp reads or checks in each."""

OWN_KEYS: dict[str, frozenset[str]] = {
    "data": frozenset(Data.__dataclass_fields__),
    "scheduler": frozenset({"interval"}),
    "strategy": frozenset({"name"}),
    "launch": frozenset(Launch.__dataclass_fields__),
}
"""Keys beside a `_target_` that are hpcexp's own and are not given to the target."""

FILLED_IN: dict[str, frozenset[str]] = {
    "data": frozenset({"batch_size", "seed"}),
    "model": frozenset({"in_shape", "num_classes"}),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer", "total_steps", "mode"}),
    "strategy": frozenset({"process_group_backend"}),
}
"""Arguments that hpcexp gives a section's target where it takes them and the configuration does not say them."""

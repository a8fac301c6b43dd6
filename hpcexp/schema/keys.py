"""The typed configuration: every key hpcexp reads, its type, default and range.

The docstring under a field documents it on the command line (`hpcexp help KEY`) and in `docs/config/`. `model`, `data`,
`optimizer`, `scheduler`, `strategy`, `launch` and `callbacks` contain a `_target_` and its arguments; the classes below
with their names list the keys that hpcexp itself reads there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

MISSING: Any = "???"
TARGET = "_target_"
HYDRA_KEYS = frozenset({TARGET, "_partial_", "_args_", "_recursive_", "_convert_"})
"""Keys beside a target's arguments that Hydra reads."""

# Most classes below are only read, never instantiated; generating their __eq__ and __repr__ would cost planning 10 ms.


def number(default: Any, **bounds: float) -> Any:
    """A numeric field and its valid range: `above`, `below`, `least`, `most`."""
    return field(default=default, metadata=bounds)


def choice(default: Any, *options: str) -> Any:
    """A field with a closed list of values."""
    return field(default=default, metadata={"options": options})


@dataclass(eq=False, repr=False)
class Hardware:
    """Which devices a job runs on."""

    accelerator: str = choice(MISSING, "auto", "cpu", "cuda")
    """`auto`: CUDA devices if the machine has any, otherwise the CPU."""
    devices: Any = MISSING
    """A count (`2`: the least busy GPUs), a list (`[0,2]`, numbered as in nvidia-smi), `all`, or `auto`: every GPU, or
    one CPU process."""
    share: int | None = number(None, least=1)
    """hpcexp jobs that may use a device at the same time. Empty: one per GPU; on the CPU any number, each with its own
    cores while enough are free, then on any core. A number on the CPU: at most so many jobs per core, each rank stays
    on its own cores, and a job that finds no free core is refused; above 1, ranks and their threads may outnumber the
    cores."""
    force: bool = False
    """Take a GPU even if processes of other programs compute on it."""
    num_nodes: int = number("${launch.nodes}", least=1)
    """Machines that the job runs on, each with `devices`."""
    threads_per_rank: int | None = number(None, least=1)
    """CPU threads of each rank; empty: the machine's cores divided by the job's ranks, or by the machine's GPUs."""


@dataclass(eq=False, repr=False)
class Data:
    """The data set: keys that hpcexp reads, beside the arguments of its `_target_`."""

    global_batch_size: int | None = number(None, least=1)
    """Samples in one optimizer step, over all ranks and accumulated batches; empty: a LightningDataModule decides."""
    eval_batch_size: int | None = number(None, least=1)
    """Samples in a validation or test batch on each rank; empty: a suitable size is chosen."""
    loader: str = choice("auto", "auto", "resident", "map")
    """`resident` keeps the set in memory as tensors; `map` reads samples through workers; `auto` chooses."""
    num_workers: int = number(0, least=0)
    """Worker processes that read samples, for `loader=map`."""
    fingerprint: str = choice("auto", "auto", "content", "listing")
    """How changed data files are detected: `content` reads every byte, once per version of a file; `listing` compares
    names, sizes and times; `auto` reads up to 32 GB in 500,000 files, and `hpcexp plan` reports if it does not."""
    folds: int | None = number(None, least=2)
    """Parts that the training split is cut into for cross-validation; `fold` is validated on, and the data's own
    validation split is not used. The parts have equal shares of each class."""
    fold: int | None = number(None, least=0)
    """The part that is held out, from 0: `-m data.folds=5 data.fold=0,1,2,3,4` trains all, and results are means over
    them."""
    fold_seed: int = number(0, least=0)
    """Seed that draws the parts; `seed` does not change them."""
    augment: Any = None
    """A callable (`_target_`) applied to every training batch on its device."""


@dataclass(eq=False, repr=False)
class Task:
    """What the model learns: keys that hpcexp reads, beside the other arguments of its `_target_`."""

    loss: Any = None
    """The loss of packaged tasks: `_target_` and its arguments."""
    metrics: list[Any] = field(default_factory=list)
    """Metrics of packaged tasks: `acc`, `top5` for classes, `mse`, `mae` for values, and any class of torchmetrics by
    its name or a short one (`f1`, `auroc`, `ap`, `kappa`, `mcc`, `iou`, `r2`, `rmse`). An entry may be a mapping of
    `metric` or `_target_`, arguments, `name` (as it is reported), and `mode` (`max`, `min`) where torchmetrics does not
    say it."""
    monitor: str = MISSING
    """Metric that judges the task; the default of `trainer.monitor`."""


@dataclass(eq=False, repr=False)
class Model:
    """The model: keys that hpcexp reads, beside the arguments of its `_target_`, unless that takes them itself."""

    init_from: str | None = None
    """Weights that a new run starts with: a run (its best ones), a checkpoint of hpcexp or Lightning, or a file with a
    `state_dict`. Its digest is part of the run's identity and of its lineage."""
    init_prefix: str = ""
    """Beginning of the names in that file that are loaded, which the model does not have: `backbone.`"""
    init_exclude: list[str] = field(default_factory=list)
    """Names in the model that keep their initial weights, with `*` for anything: `[head]`"""
    init_strict: bool = True
    """Whether every other weight of model and file must have its counterpart."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that are not trained: as for `optimizer.no_decay`; `backbone` means all below it."""


@dataclass(eq=False, repr=False)
class Optimizer:
    """The optimizer: keys that hpcexp checks, beside the other arguments of its `_target_`."""

    lr: float = number(MISSING, above=0)
    """Highest learning rate; a schedule scales it."""
    weight_decay: float = number(0.0, least=0)
    """Weight decay per step, as the optimizer defines it."""
    momentum: float = number(0.0, least=0, most=1)
    """Momentum, if the optimizer has it."""
    no_decay: list[str] = field(default_factory=list)
    """Parameters without weight decay: `bias`, `norm` (of normalisation layers), `ndim<2`, or names with `*` for
    anything: `[bias,norm,'ndim<2','blocks.*.scale']`. Each must match a parameter."""


@dataclass(eq=False, repr=False)
class Scheduler:
    """The learning-rate schedule: keys that hpcexp reads, beside the arguments of its `_target_`."""

    interval: str = choice("step", "step", "epoch")
    """Whether the learning rate changes after every optimizer step or every epoch."""
    warmup: float = number(0.0, least=0, most=1)
    """Share of all steps during which the rate rises from zero, if the schedule has a warm-up."""


@dataclass(eq=False, repr=False)
class Strategy:
    """How several devices share the training: keys that hpcexp reads, beside the arguments of its `_target_`."""

    name: str = choice(MISSING, "auto", "single", "ddp", "fsdp", "custom")
    """`auto`: one process on one device, DDP on several. `fsdp` shards weights and optimizer state over the devices."""
    bucket_cap_mb: float = number(25.0, above=0)
    """ddp: size of the buckets in which gradients are sent while the rest is computed."""
    find_unused_parameters: bool = False
    """ddp: allow parameters that a step's loss does not depend on; costs a walk through the graph at every step."""
    gradient_as_bucket_view: bool = True
    """ddp: keep gradients in the buckets, which saves a copy."""
    static_graph: bool = False
    """ddp: promise that all steps use the same parameters in the same way, which saves checks."""
    compression: str = choice("none", "none", "fp16", "bf16", "powersgd")
    """ddp: how gradients are compressed before they are sent. `fp16` and `bf16` round them; `bf16` needs GPUs.
    `powersgd` sends matrices as products of two narrow ones (Vogels et al. 2019) and adds the error to the next step.
    All change the result."""
    powersgd_rank: int = number(1, least=1)
    """ddp: columns of the narrow matrices of `powersgd`: more columns are more exact, and more to send."""
    powersgd_start: int = number(1000, least=2)
    """ddp: steps before `powersgd` starts; shorter runs are not compressed."""
    min_params: int = number(100_000, least=1)
    """fsdp: a child of a Sequential or ModuleList with at least so many parameters becomes a unit, whose weights are
    gathered together while it computes; the rest of the model is one more unit."""
    reshard_after_forward: bool = True
    """fsdp: free a unit's weights between forward and backward; they are then gathered twice."""


@dataclass(eq=False, repr=False)
class Trainer:
    """How, and how long, the model is trained."""

    max_epochs: int = number(MISSING, least=1)
    """Passes over the training data."""
    max_steps: int | None = number(None, least=1)
    """Steps after which training ends, if `max_epochs` does not end it earlier. A step is a global batch, however many
    optimizers are stepped on it."""
    max_duration: str | None = None
    """How long to train, instead of `max_epochs` and `max_steps`: `20ep` (epochs), `5000ba` (global batches), `1e6sp`
    (samples), `1e9tok` (tokens), `90min`, `2h`, `1d` (time of training, over all attempts)."""
    precision: str = choice("32-true", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
    """Number format, by Lightning's name; `16-mixed` needs a GPU."""
    accumulate_grad_batches: int = number(1, least=1)
    """Batches per optimizer step on each rank; `data.global_batch_size` stays the same."""
    gradient_clip_val: float | None = number(None, above=0)
    """Norm to clip gradients to; empty: no clipping."""
    ema_decay: float | None = number(None, above=0, below=1)
    """Decay of a moving average of the weights, which is evaluated and saved; empty: none."""
    compile: bool = False
    """Compile the model with `torch.compile`: starts slower, trains large models faster."""
    deterministic: bool = False
    """Use only kernels that give the same bits every time; an operation without one fails."""
    val_every_epochs: int = number(1, least=1)
    """Epochs between validations; the last epoch is always validated."""
    val_every_steps: int | None = number(None, least=1)
    """Steps between validations, over the ends of epochs, instead of `val_every_epochs`; the last step is validated."""
    monitor: str = "${task.monitor}"
    """Metric that determines the best checkpoint and early stopping."""
    mode: str | None = choice(None, "max", "min")
    """Whether a higher or lower `monitor` is better; empty: as the task says of its metrics."""
    patience: int | None = number(None, least=1)
    """Validations without improvement of `monitor` after which training stops; empty: never."""
    min_delta: float = number(0.0, least=0)
    """Smallest change of `monitor` that counts as an improvement."""
    log_every_n_steps: int = number(50, least=1)
    """Steps between writes of the journal, which contains the values of every step in any case."""
    limit_train_batches: int | float | None = number(None, above=0)
    """Global batches per training epoch: a count, or with a point a share of them (`0.1`, up to `1.0`); empty: all."""
    limit_eval_batches: int | float | None = number(None, above=0)
    """Batches per validation or test: a count, or a share of them; empty: all."""
    overfit_batches: int = number(0, least=0)
    """Train and validate only on so many global batches, to see whether the model can learn at all; 0: on all."""
    profiler: str | None = choice(None, "simple", "advanced", "pytorch")
    """Lightning profiler, which writes its report to the run directory."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `pytorch_lightning.Trainer`, by their names there."""


@dataclass(eq=False, repr=False)
class Checkpoint:
    """When checkpoints are written. The end of training always writes the best and the last."""

    every_s: float | None = number(60.0, above=0)
    """Seconds between checkpoints; empty: none by time."""
    every_steps: int | None = number(None, least=1)
    """Optimizer steps between checkpoints; empty: none by steps."""
    every_epochs: int | None = number(None, least=1)
    """Epochs between checkpoints; empty: none by epochs."""
    async_write: bool = True
    """Write from a copy while training continues. The copy takes a checkpoint's size of host memory on rank 0 (pinned,
    for GPUs). Without this, or without free memory, training waits for the disk."""
    on_error: str = choice("continue", "continue", "stop")
    """After a checkpoint cannot be written, for example on a full disk: `continue` training with a warning and try
    again at the next one, or `stop`. The last checkpoint must succeed in any case; the one before stays intact."""


@dataclass(eq=False, repr=False)
class Tracking:
    """Where and how runs are recorded in MLflow."""

    enabled: bool = MISSING
    """Send metrics, parameters, artifacts and the model to MLflow."""
    uri: str | None = None
    """Tracking server or database; empty: `MLFLOW_TRACKING_URI`, otherwise SQLite beside the runs."""
    experiment: str = "${name}"
    """MLflow experiment of the run."""
    tags: dict[str, Any] = field(default_factory=dict)
    """Additional tags of the MLflow run."""
    model: str = choice("auto", "auto", "always", "never")
    """Whether to upload the trained weights; `auto`: up to 100 MB, otherwise MLflow records path and digest."""
    system_every_s: float | None = number(10.0, above=0)
    """Seconds between measurements of CPU, memory, network, GPUs and power; empty: none."""
    wait_s: float = number(60.0, least=0)
    """Seconds to wait at the end for the upload to MLflow; `hpcexp sync` uploads the rest."""


@dataclass(eq=False, repr=False)
class Launch:
    """Where and how jobs start: keys that hpcexp reads for every launcher, beside the arguments of its `_target_`."""

    nodes: int = number(1, least=1)
    """Machines that the job runs on, each with `hardware.devices`."""
    beat_timeout_s: float = number(60.0, least=5, most=86400)
    """Seconds without a beat after which other machines consider the command that runs a job or a sweep dead, and take
    its jobs over. On the same machine, its process decides."""
    grace_s: float = number(30.0, least=0)
    """Seconds that ranks get to stop before they are killed."""
    hang_s: float | None = number(1800.0, above=0)
    """Seconds without a step or an evaluated batch on any rank after which hpcexp saves the stacks of all ranks and
    ends them; at least 600 before the first step; empty: never."""
    isolation: str = choice("auto", "auto", "warm", "process")
    """`warm`: fork ranks from a server that has imported what they need; `process`: start a fresh process for each;
    `auto`: `warm` if a command runs more than one job."""
    max_jobs: int | None = number(None, least=1)
    """Jobs of a sweep that run at once on this machine; empty: as many as there are devices for; on CPUs, as many as
    there are cores for the threads of all their ranks."""
    retries: int = number(2, least=0)
    """How often in a row a sweep's job resumes by itself, without reaching another checkpoint, after a rank is killed
    from outside (`kill -9`, no memory). After that the job has failed; the same command tries it again."""
    progress: str = choice("auto", "auto", "bar", "lines", "none")
    """`auto`: on a terminal, a bar, or a table for a sweep; elsewhere, a line every few seconds, or one for each job of
    a sweep that starts or ends."""


@dataclass(eq=False, repr=False)
class Run:
    """Where results are stored."""

    root: str = "runs"
    """Directory of all run directories, and of the default MLflow store."""
    label: str = ""
    """Your own word in the run's name; it does not change the run's identity."""
    pictures: bool = True
    """Draw curves and confusion matrix after the run, which takes a second. Without pictures and tracking, no sync
    process runs."""
    resume_from: str | None = None
    """An interrupted run of the same experiment on other devices, from whose last checkpoint this run starts: its
    directory, or the eight characters at the end of its name. The result equals that of an uninterrupted run up to
    rounding and, with dropout and augmentation, other random numbers."""


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
    """What this experiment investigates; the run's page in MLflow shows it."""
    seed: int = number(1, least=0, most=2**32 - 1)
    """Seed of initial weights, shuffling, dropout and augmentation."""
    hardware: Hardware = field(default_factory=Hardware)
    data: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=Trainer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks, each with its `_target_`, under names of your choice."""
    tracking: Tracking = field(default_factory=Tracking)
    launch: dict[str, Any] = field(default_factory=lambda: defaults(Launch))
    run: Run = field(default_factory=Run)


OPEN_SECTIONS: dict[str, type] = {
    "data": Data,
    "task": Task,
    "model": Model,
    "optimizer": Optimizer,
    "scheduler": Scheduler,
    "strategy": Strategy,
    "launch": Launch,
}
"""Sections with a `_target_` and its arguments → the class of the keys that hpcexp reads or checks there."""

OWN_KEYS: dict[str, frozenset[str]] = {
    "data": frozenset(Data.__dataclass_fields__),
    "task": frozenset({"monitor"}),
    "model": frozenset(Model.__dataclass_fields__),
    "optimizer": frozenset({"no_decay"}),
    "scheduler": frozenset({"interval"}),
    "strategy": frozenset({"name"}),
    "launch": frozenset(Launch.__dataclass_fields__),
}
"""hpcexp's own keys beside a `_target_`, which are not passed to the target."""

REPEATS = ("seed", "data.fold")
"""Keys whose values repeat an experiment: results are means over them, and none of their values is the best."""

FILLED_IN: dict[str, frozenset[str]] = {
    "data": frozenset({"batch_size", "seed"}),
    "model": frozenset({"in_shape", "num_classes"}),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer", "total_steps", "mode"}),
    "strategy": frozenset({"process_group_backend"}),
}
"""Arguments that hpcexp passes to a section's target if it accepts them and the configuration does not set them."""

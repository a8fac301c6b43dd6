"""Lightning's logger interface on the run directory: `self.log`, `self.logger` and what people call on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from uuid import NAMESPACE_URL, uuid5

from lightning_fabric.loggers.logger import _DummyExperiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

from hpcexp.checks.values import typed
from hpcexp.media import encode
from hpcexp.media.recorder import Content, Recorder
from hpcexp.runs.journal import Journal
from hpcexp.train.engine.experiment import Experiment, refuse


def run_id_of(run_dir: Path) -> str:
    """What a job's run is called in the job, where MLflow's id of it is not known."""
    return uuid5(NAMESPACE_URL, str(run_dir)).hex


class JournalLogger(Logger):
    """Writes metrics to the journal; parameters stand in `plan.yaml` already.

    `journal` is None on every rank but 0. It stays the caller's, who closes it.
    """

    def __init__(self, journal: Journal | None, recorder: Recorder, experiment: str, name: str, run_dir: Path) -> None:
        super().__init__()
        self._journal, self._recorder = journal, recorder
        self._experiment = experiment
        self._name = name
        self._run_dir = run_dir
        self.running_step: Callable[[], int] = int
        """Gives the step of metrics that are logged without one."""

    def __getattr__(self, name: str) -> NoReturn:
        refuse(name, "logger", self)

    @property
    def run_id(self) -> str:
        """What `logger.experiment` takes for this run. The sync process gives the MLflow run its id, later."""
        return run_id_of(self._run_dir)

    @property
    def experiment(self) -> Any:
        """The run as MLflow's client, TensorBoard's writer and wandb's run; on other ranks than 0 it does nothing."""
        return Experiment(self._recorder, self.run_id) if self._recorder.leads else _DummyExperiment()

    @property
    def name(self) -> str:
        """The experiment."""
        return self._experiment

    @property
    def version(self) -> str:
        """The run's name within its experiment."""
        return self._name

    @property
    def save_dir(self) -> str:
        """The run directory, where Lightning puts what it writes itself."""
        return str(self._run_dir)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One journal line of plain numbers."""
        if self._journal is not None and metrics:
            at = self.running_step() if step is None else step
            self._journal.append([(at, {key: float(value) for key, value in metrics.items()})])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Parameters of the run that user code gives, nested ones by dotted names; those of the plan are there already.

        Lightning itself does not call it: see `accept_any_hyperparameters`.
        """
        if self._recorder.leads:
            for name, value in _leaves(params if isinstance(params, Mapping) else vars(params)):
                self._recorder.note("param", name, typed(value))

    @rank_zero_only
    def log_image(
        self, key: str, images: Any, step: int | None = None, caption: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        """Pictures, as of wandb's logger."""
        given = images if isinstance(images, list | tuple) else [images]
        self._recorder.put("image", key, [c for image in given for c in encode.images(key, image)], step)
        self._captions(key, caption, step)

    @rank_zero_only
    def log_audio(
        self,
        key: str,
        audios: Any,
        step: int | None = None,
        sample_rate: Any = None,
        caption: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Sounds, as of wandb's logger: a rate for each, or one for all."""
        given = audios if isinstance(audios, list | tuple) else [audios]
        rates = sample_rate if isinstance(sample_rate, list | tuple) else [sample_rate] * len(given)
        sounds = [encode.audio(key, audio, rate) for audio, rate in zip(given, rates, strict=True)]
        self._recorder.put("audio", key, sounds, step)
        self._captions(key, caption, step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        """A table, as of wandb's logger."""
        value = data if dataframe is None else dataframe
        self._recorder.put("table", key, [encode.table(key, value, columns)], step)

    @rank_zero_only
    def log_text(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        """A table of texts, as of wandb's logger; or one text, as second argument."""
        if isinstance(columns, str):
            self._recorder.put("text", key, [Content(columns.encode(), ".txt")], step)
        else:
            self.log_table(key, columns, data, dataframe, step)

    def _captions(self, key: str, captions: Sequence[str] | str | None, step: int | None) -> None:
        if captions is not None:
            given = [captions] if isinstance(captions, str) else captions
            self._recorder.put("text", f"{key}/caption", [Content(str(c).encode(), ".txt") for c in given], step)

    def save(self) -> None:
        """Have everything on the disk: a checkpoint must not be newer than the journal."""
        self._recorder.sync()
        if self._journal is not None:
            self._journal.sync()

    def finalize(self, status: str) -> None:
        """Have everything on the disk when training ends, however it ended."""
        if self._journal is not None:
            self._journal.sync()


def _leaves(params: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

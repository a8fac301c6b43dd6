"""Tags of a run in MLflow, from its plan, its result and its place below a sweep."""

from __future__ import annotations

from pathlib import Path

from hpcexp.files.untrusted import UnusableFileError, sha256_of
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.records.results import Summary
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.runs.records.sync import SyncRecord, read_sync_record
from hpcexp.tracking.mlflow import description
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.mlflow.links import page
from hpcexp.tracking.mlflow.store import legal_model_name
from hpcexp.tracking.sync import artifacts
from hpcexp.tracking.sync.state import SyncState

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or model."""


class RunTags:
    """What the tags of one run are now."""

    def __init__(self, run: RunDir, plan: Plan, sync_state: SyncState) -> None:
        self._run, self._plan, self._sync_state = run, plan, sync_state

    @property
    def _known(self) -> SyncRecord:
        return self._sync_state.known

    @property
    def model_name(self) -> str:
        """The experiment's name as MLflow allows it for a model."""
        return legal_model_name(str(self._plan.settings.tracking.experiment))

    @property
    def has_model(self) -> bool:
        """Whether MLflow gets a model of the run."""
        return self._plan.settings.tracking.model != "never" and artifacts.is_there(self._run.path, self._run.best)

    def parent(self) -> str | None:
        """The MLflow run of the sweep, if that is in the same store.

        None where the sweep's own record is damaged: syncing the sweep reports that, and its runs do without.
        """
        if (sweep := self._known.sweep) is None:
            return None
        try:
            above = read_sync_record(SweepDir(Path(sweep.path)))
        except UnusableFileError:
            return self._known.parent
        return above.run_id if above.tracking_uri == self._plan.tracking_uri else None

    def of_start(self, state: RunState, parent: str | None) -> dict[str, str]:
        """All tags of a run that has no result yet."""
        news = {**self.description(Summary()), names.STATE: str(state)}
        return {**description.tags(self._plan), **news, **self.of_sweep(parent)}

    def of_end(self, state: RunState, summary: Summary) -> dict[str, str]:
        """Tags that the result adds or changes."""
        tags = {names.STATE: str(state), **description.best_tags(summary)}
        if cause := read_status(self._run).cause:
            tags[names.CAUSE] = cause
        if RunState.PRUNED in (state, self._known.state):  # a pruned run may have resumed since
            tags[names.PRUNED] = str(state is RunState.PRUNED).lower()
        if summary.world_size is not None:  # as measured, which replaces the planned one
            tags[names.WORLD_SIZE] = str(summary.world_size)
        tags |= description.lineage_tags(self._run.lineage)
        return tags | (self.of_model(summary) if self.has_model else {})

    def of_sweep(self, parent: str | None) -> dict[str, str]:
        """Tags that put the run below its sweep."""
        sweep = self._known.sweep
        return {} if sweep is None else description.sweep_tags(Path(sweep.path).name, sweep.axes, parent)

    def of_model(self, summary: Summary) -> dict[str, str]:
        """Where the best weights are, and their digest."""
        checkpoint = self._run.best
        digest = (summary.best and summary.best.sha256) or sha256_of(checkpoint)
        return {names.CHECKPOINT: str(checkpoint.absolute()), names.CHECKPOINT_SHA256: digest}

    def description(self, summary: Summary) -> dict[str, str]:
        """The tag with the text of the run's page, and links to what belongs to the run."""
        links = {"Sweep": self._sweep_links(), "Model": self._model_link(), "Data": description.data_text(self._plan)}
        shown = {what: text for what, text in links.items() if text}
        return {NOTE: description.note(self._plan, summary.test, shown)}

    def _sweep_links(self) -> str:
        """Links to the sweep and to the run's siblings; empty unless the sweep is in the same store."""
        if (parent := self.parent()) is None or self._known.sweep is None:
            return ""
        sweep = SweepDir(Path(self._known.sweep.path))
        experiment_id = read_sync_record(sweep).experiment_id or ""
        link = f"[{sweep.path.name}]({page(experiment_id, run_id=parent)})"
        return f"{link} ({description.sweep_links(experiment_id, sweep.path.name)})"

    def _model_link(self) -> str:
        if (model_id := self._known.model_id) is None:
            return ""
        assert self._known.experiment_id is not None
        return f"[{self.model_name}]({page(self._known.experiment_id, model_id=model_id)})"

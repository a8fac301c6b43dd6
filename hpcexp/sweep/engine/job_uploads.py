"""Which runs of a sweep its uploader sends to MLflow, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.launch.supervisor.uploader import SweepUploader, has_work
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.runs.records.sync import Membership, read_sync_record
from hpcexp.sweep.store.jobs import Job


class JobUploads:
    """The uploader of a sweep's jobs, as their supervisors see it."""

    def __init__(self, directory: SweepDir, axes_of: Mapping[str, Mapping[str, str]]) -> None:
        """`axes_of`: by run directory, the job's value on each axis; read when a run starts."""
        self._directory, self._axes_of = directory, axes_of
        self._sweep = SweepUploader(directory.path)

    def begin(self, run: RunDir, plan: Plan) -> None:
        """Upload a run that starts, or that an earlier command has run."""
        if has_work(plan):
            self._sweep.add(run, self._axes_of[str(run.path)])

    def end(self, run: RunDir, plan: Plan) -> None:
        """The uploader reads the end of a run from its directory."""

    def add_skipped(self, job: Job) -> None:
        """Upload a finished run that MLflow does not have as one of this sweep."""
        if not self._is_synced(job):
            self.begin(RunDir(Path(job.plan.run_dir)), job.plan)

    def tend(self) -> None:
        """Restart the uploader if it died. Never waits."""
        self._sweep.tend()

    def close(self, wait_s: float, *, is_tracked: bool) -> None:
        """Wait at most `wait_s` for the rest."""
        self._sweep.close(wait_s, is_tracked=is_tracked)

    def _is_synced(self, job: Job) -> bool:
        try:
            known = read_sync_record(RunDir(Path(job.plan.run_dir)))
        except RunError:
            return False  # the uploader reports it
        sweep = Membership(str(self._directory.path), dict(self._axes_of[job.entry.run]))
        return job.plan.tracking_uri is None or (known.synced and known.sweep == sweep)

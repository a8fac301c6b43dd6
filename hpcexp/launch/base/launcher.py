"""What a launcher is: where a job's ranks run. `launch._target_` names its class, as `strategy._target_` does.

The constructor takes the keys of `launch` that hpcexp does not read itself. Planning makes a launcher and asks it, so
its module imports nothing heavy: what a run needs is imported when it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hpcexp.errors import ConfigError, listed
from hpcexp.schema.settings import Settings
from hpcexp.status.state import KnowsJobs
from hpcexp.targets.instantiate import call_problems, resolve

if TYPE_CHECKING:
    from hpcexp.hardware.machine import Machine
    from hpcexp.launch.base.context import LaunchContext
    from hpcexp.launch.base.outcome import Outcome
    from hpcexp.launch.base.polling import Supervision
    from hpcexp.plan import Plan
    from hpcexp.rundir import RunDir

PATH = "launch"


@runtime_checkable
class Launcher(KnowsJobs, Protocol):
    """Starts and supervises jobs somewhere. One object serves all jobs of the same `launch` section."""

    is_here: bool
    """Whether all ranks are processes of this machine: drills kill them, and reproductions compare them."""

    def problems(self, settings: Settings) -> list[str]:
        """What this launcher cannot do of a composed configuration, each with a fix. Called before anything starts.

        Values may be missing or of a wrong type: that is reported elsewhere, and KeyError and TypeError are caught.
        """

    def machine(self, settings: Settings) -> Machine:
        """What each node of the job has. Planning divides its devices and cores, whatever this machine has."""

    def capacity(self, settings: Settings) -> int | None:
        """Jobs of a sweep that may run at once; None if only free devices decide."""

    def run(self, plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
        """Run the plan to its end, yielding where it would wait, and leave the final state in its run directory.

        An interrupted run resumes, unless `fresh`. DevicesBusyError where a job that is one of many finds no devices.
        """

    def cancel(self, run: RunDir) -> None:
        """Ask the job's supervisor, on whatever machine, to end it cleanly. Returns before it has ended."""


def launcher_of(settings: Settings) -> Launcher:
    """The launcher that a configuration names. ConfigError if it cannot be made."""
    target, given = settings.launch.target, settings.launch.arguments
    made = resolve(target, PATH)
    if lacking := [name for name in _METHODS if not (isinstance(made, type) and hasattr(made, name))]:
        raise ConfigError(_no_launcher(target, lacking))  # and is not called: it was not made for this
    if problems := call_problems({"_target_": target, **given}, PATH):
        raise ConfigError(problems)
    try:
        launcher = made(**given)
    except Exception as e:
        why = f"{type(e).__name__}: {e}"
        raise ConfigError(f"{PATH}._target_={target} could not be made: {why}\nFix: look at the keys of {PATH}.") from e
    if isinstance(launcher, Launcher):
        return launcher
    raise ConfigError(_no_launcher(target, ["is_here"]))


def _no_launcher(target: str, lacking: list[str]) -> str:
    return (
        f"{PATH}._target_={target}: {target.rpartition('.')[2]} is not a launcher: it lacks {listed(lacking)}.\n"
        "Fix: launch=local, or the members of hpcexp.launch.base.launcher.Launcher."
    )


_METHODS = ("problems", "machine", "capacity", "run", "is_alive", "cancel")

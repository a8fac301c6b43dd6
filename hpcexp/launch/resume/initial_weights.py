"""`model.init_from`: which file a new run's model takes its weights from. Read while planning, without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpcexp.errors import ConfigError
from hpcexp.files.atomic import sha256
from hpcexp.plan import InitialWeights
from hpcexp.rundir import RunDir, find_runs


def asked_weights(given: object, project: Path, root: Path) -> tuple[InitialWeights | None, list[str]]:
    """What `model.init_from` names, and why it names nothing; neither where it is empty or no text."""
    if not isinstance(given, str):
        return None, []
    try:
        return initial_weights(given, project, root), []
    except ConfigError as e:
        return None, e.problems


def initial_weights(given: str, project: Path, root: Path, digest: Callable[[Path], str] = sha256) -> InitialWeights:
    """The file that `model.init_from` names: its own path, or that of a run's best weights. ConfigError of none."""
    path = project / Path(given).expanduser()
    if path.is_file():
        return InitialWeights(str(path), digest(path))
    run = RunDir(path) if (path / "plan.yaml").exists() else _named(given, root)
    if not run.best.is_file():
        raise ConfigError(
            f"model.init_from={given}: that run has no best weights.\nFix: train it first, or name another."
        )
    return InitialWeights(str(run.best), digest(run.best), f"{run.path.parent.name}/{run.path.name}")


def _named(given: str, root: Path) -> RunDir:
    """The run of that name, or whose name ends so, below the directory of all runs."""
    runs = list(find_runs(root))
    found = [run for run in runs if given in (run.path.name, f"{run.path.parent.name}/{run.path.name}")]
    found = found or [run for run in runs if run.path.name.rpartition("-")[2].startswith(given)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} runs are called that" if found else "there is no such file or run"
    raise ConfigError(
        f"model.init_from={given}: {what}.\n"
        "Fix: a checkpoint or state_dict file, the directory of a run, or the eight characters that its name ends in."
    )

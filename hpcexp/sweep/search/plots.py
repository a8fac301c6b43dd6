"""Pictures of a study: how it went, what mattered, which values go together, and what several objectives trade.

Importing this module imports Optuna, not matplotlib; drawing does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpcexp.files.atomic import write_atomic
from hpcexp.sweep.search.study import Study
from hpcexp.sweep.spec.spec import Objective
from hpcexp.text.key_names import KeyTable, flat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEXT, _GRID = "#2b2b33", "#e3e3e8"
_DPI = 150
_ENOUGH = 4
"""Finished trials from which on something can be said of what mattered."""
_LONGEST, _LONGEST_VALUE = 28, 18
"""Characters of an axis and of a value in a picture."""


def draw_study(study: Study, directory: Path) -> list[Path]:
    """Draw what the study has trials for into `directory`; the files, all of them whole."""
    finite = _drawable(study)
    finished = [trial for trial in finite.trials if trial.state is TrialState.COMPLETE]
    with _quiet():
        return [_save(draw(), directory / f"{name}.png") for name, draw in _pictures(finite, study, finished)]


def _pictures(
    finite: optuna.Study, study: Study, finished: Sequence[FrozenTrial]
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Name → what draws it, of those that there are trials for."""
    from optuna.visualization import matplotlib as drawn

    files = KeyTable()
    title = f"{study.name}: {len(finished)} finished trial{'s' * (len(finished) != 1)}"
    for i, objective in enumerate(study.objectives):
        target: dict[str, Any] = {"target_name": objective.metric}
        name = ""
        if len(study.objectives) > 1:
            target, name = {**target, "target": partial(_value, i)}, f"-{flat(files[objective.metric])}"
        if finished:
            yield f"history{name}", partial(_history, drawn, finite, target, title)
        if len({trial.values[i] for trial in finished}) > 1 and len(finished) >= _ENOUGH:
            yield f"importances{name}", partial(_importances, drawn, finite, target, title)
            yield f"parallel{name}", partial(_parallel, drawn, finite, target, title)
    if len(study.objectives) == 2 and finished:
        yield "pareto", partial(_pareto, drawn, finite, study.objectives, title)
    if any(trial.intermediate_values for trial in finite.trials):
        yield "epochs", partial(_epochs, drawn, finite, study.objectives[0], title)


def _value(i: int, trial: FrozenTrial) -> float:
    return float(trial.values[i])


def _drawable(study: Study) -> optuna.Study:
    """A copy in memory, in which what cannot be drawn is a failed trial: all keep their numbers."""
    trials = study.trials()
    copied = optuna.create_study(directions=study.optuna.directions)
    for number in range(max(trials, default=-1) + 1):
        trial = trials.get(number)
        copied.add_trial(trial if trial and _is_drawable(trial) else create_trial(state=TrialState.FAIL))
    return copied


def _is_drawable(trial: FrozenTrial) -> bool:
    if trial.state is TrialState.PRUNED:
        return True
    return trial.state is TrialState.COMPLETE and all(map(math.isfinite, trial.values))


def _history(drawn: Any, finite: optuna.Study, target: dict[str, Any], title: str) -> Figure:
    axes = drawn.plot_optimization_history(finite, **target)
    figure = _framed(axes, title)
    axes.set_xlabel("trial")
    axes.legend(["each", "best so far"], fontsize=8, frameon=False)
    return figure


def _importances(drawn: Any, finite: optuna.Study, target: dict[str, Any], title: str) -> Figure:
    axes = drawn.plot_param_importances(finite, evaluator=PedAnovaImportanceEvaluator(), **target)
    figure = _framed(axes, title, height=1.6 + 0.42 * len(_axes_of(finite)))
    axes.set_xlabel(f"share in {target['target_name']}")
    axes.set_ylabel("")
    axes.set_yticks(axes.get_yticks(), [_cut(label.get_text()) for label in axes.get_yticklabels()])
    axes.margins(x=0.12)  # room for the numbers behind the bars
    if legend := axes.get_legend():
        legend.remove()
    return figure


def _parallel(drawn: Any, finite: optuna.Study, target: dict[str, Any], title: str) -> Figure:
    names = _axes_of(finite)
    axes = drawn.plot_parallel_coordinate(finite, params=names, **target)
    figure = _framed(axes, title, width=3.5 + 1.9 * len(names))
    axes.set_xticks(axes.get_xticks(), [target["target_name"], *map(_cut, names)], rotation=20, ha="right")
    for upright in figure.axes:
        upright.grid(visible=False)
        upright.tick_params(labelsize=7)
        texts = [label.get_text() for label in upright.get_yticklabels()]
        if any(len(text) > _LONGEST_VALUE for text in texts) and not any("$" in text for text in texts):
            upright.set_yticks(upright.get_yticks(), [_cut(text, _LONGEST_VALUE) for text in texts])
        for label in upright.get_yticklabels():
            label.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6})
    return figure


def _axes_of(finite: optuna.Study) -> list[str]:
    return sorted({name for trial in finite.trials for name in trial.params})


def _pareto(drawn: Any, finite: optuna.Study, objectives: Sequence[Objective], title: str) -> Figure:
    better = [f"{o.metric} ({'more' if o.mode == 'max' else 'less'} is better)" for o in objectives]
    return _framed(drawn.plot_pareto_front(finite, target_names=better), title)


def _epochs(drawn: Any, finite: optuna.Study, objective: Objective, title: str) -> Figure:
    axes = drawn.plot_intermediate_values(finite)
    figure = _framed(axes, title)
    axes.set_xlabel("epoch")
    axes.set_ylabel(objective.metric)
    if (legend := axes.get_legend()) and len(finite.trials) > 12:
        legend.remove()
    return figure


def _framed(axes: Axes, title: str, width: float = 7.0, height: float = 4.2) -> Figure:
    figure = cast("Figure", axes.get_figure())
    figure.set_size_inches(width, height)
    axes.set_title("")
    axes.set_title(title, color=_TEXT, fontsize=10, loc="left")
    axes.set_facecolor("white")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_TEXT)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=9, color=_TEXT)
    return figure


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a display, and without a trace: Optuna draws with pyplot, whose style is the process's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        yield
    pyplot.close("all")


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    write_atomic(path, content.getvalue())  # two drivers may end at once
    return path


def _cut(text: str, longest: int = _LONGEST) -> str:
    """Without its beginning, which dotted names have in common."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"

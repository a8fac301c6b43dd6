"""The one place that turns a `_target_` node into an object."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcexp.errors import ConfigError
from hpcexp.schema.keys import HYDRA_KEYS, TARGET
from hpcexp.targets.literals import literal
from hpcexp.targets.nodes import (
    missing_argument,
    no_module,
    no_name,
    not_callable,
    unknown_argument,
    wrong_target,
)


def instantiate(node: Mapping[str, Any], *args: Any, path: str, **kwargs: Any) -> Any:
    """The object `node` describes; `path` is where the node is in the configuration, for messages.

    ConfigError where the target does not exist, does not take an argument, or fails.
    """
    import hydra.utils

    if args:  # the call is completed here, which a partial asks for
        node = {key: value for key, value in node.items() if key != "_partial_"}
    if problems := call_problems(node, path, given=(*kwargs,), positional=len(args)):
        raise ConfigError(problems)
    try:
        return hydra.utils.instantiate({"_convert_": "all", **literal(node)}, *args, **kwargs)
    except ConfigError:
        raise
    except Exception as e:
        cause = _root(e)
        raise ConfigError(
            f"{path}.{TARGET}={node[TARGET]} could not be built: {type(cause).__name__}: {cause}{_place(cause)}\n"
            f"Fix: look at the arguments under {path}."
        ) from e


def on_path(project: Path) -> None:
    """Let `_target_`s name modules of the project, as `python -m` in it would."""
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))


def _place(error: BaseException) -> str:
    """Where it was raised, as ` (file:line)`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def fill(node: Mapping[str, Any], path: str, **known: Any) -> dict[str, Any]:
    """`node` with what is known, where its target takes it by name and the configuration does not say it."""
    names = {name for name, p in parameters(resolve(node[TARGET], path)).items() if p.kind is not p.VAR_KEYWORD}
    return {**{k: v for k, v in known.items() if k in names and k not in node}, **node}


def resolve(target: str, path: str) -> Callable[..., Any]:
    """What the dotted name stands for. ConfigError saying which part of it does not exist."""
    from hydra._internal.utils import _locate

    try:
        found = _locate(target)
    except Exception as e:
        raise ConfigError(wrong_target(path, target, _missing(target, e))) from e
    if not callable(found):
        raise ConfigError(wrong_target(path, target, not_callable(target, type(found).__name__)))
    return found  # type: ignore[no-any-return]


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a class or function by name; empty where Python does not know them (C functions)."""
    if isinstance(target, type) and type(target) is type and _takes_nothing(target):
        return {}  # inspect.signature would parse the text of object's docstring
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def call_problems(
    node: Mapping[str, Any], path: str, given: Iterable[str] = (), positional: int = 0, *, is_complete: bool = True
) -> list[str]:
    """Arguments under `node` that its target does not take, and required ones that nobody gives if it `is_complete`."""
    try:
        taken = parameters(resolve(node[TARGET], path))
    except ConfigError as e:
        return e.problems
    names = [k for k in node if k not in HYDRA_KEYS]
    problems = []
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        problems = [unknown_argument(path, name, node[TARGET], taken) for name in names if name not in taken]
    if is_complete and not node.get("_partial_"):
        present = {*names, *given, *list(taken)[: positional + len(node.get("_args_", ()))]}
        problems += [
            missing_argument(path, name, node[TARGET]) for name, p in taken.items() if _required(p, name, present)
        ]
    return problems


def _takes_nothing(cls: type) -> bool:
    return cls.__init__ is object.__init__ and cls.__new__ is object.__new__  # type: ignore[misc, comparison-overlap]


def _required(parameter: inspect.Parameter, name: str, present: set[str]) -> bool:
    variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not variable and name not in present


def _missing(target: str, error: Exception) -> str:
    """The reason: walks the dotted name to its last part that exists."""
    import importlib

    parts = target.split(".")
    owner: Any = None
    for i, part in enumerate(parts):
        name = ".".join(parts[: i + 1])
        step = getattr(owner, part, None)
        if step is None:
            try:
                step = importlib.import_module(name)
            except ModuleNotFoundError as e:
                if e.name is None or not name.startswith(e.name):
                    return f"could not be imported: {e}"
                return _no_part(".".join(parts[:i]), part, owner)
            except Exception as e:  # noqa: BLE001 - a module may raise anything while it is imported
                return f"could not be imported: {type(e).__name__}: {e}"
        owner = step
    return f"could not be imported: {error}"


def _no_part(owner_name: str, part: str, owner: Any) -> str:
    if owner is None:
        return no_module(part)
    return no_name(part, owner_name, [name for name in dir(owner) if not name.startswith("_")])


def _root(error: BaseException) -> BaseException:
    """What the constructor raised, below Hydra's wrapping."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error

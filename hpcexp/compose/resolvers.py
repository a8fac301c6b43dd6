"""Resolvers of interpolations: `${hydra:…}` as far as planning knows it, and the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpcexp.errors import ConfigError

_RUNTIME: ContextVar[Mapping[str, Any] | None] = ContextVar("runtime", default=None)
_CHOICES = "runtime.choices."
_TABLE = "[tool.hpcexp]"


def register(project: Path) -> None:
    """Have `${hydra:…}` and the resolvers that the project's pyproject.toml names; ConfigError where they fail.

    `[tool.hpcexp] resolvers = "my_project.resolvers"` is a module that registers them when it is imported.
    """
    OmegaConf.register_new_resolver("hydra", _of_hydra, replace=True)
    file = project / "pyproject.toml"
    if not file.is_file() or "tool.hpcexp" not in (text := file.read_text(encoding="utf-8")):
        return
    import tomllib

    try:
        settings = tomllib.loads(text).get("tool", {}).get("hpcexp", {})
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{file.name}: this is not TOML: {e}.") from e
    if unknown := sorted(settings.keys() - {"resolvers"}):
        raise ConfigError(f"{file.name}: {_TABLE} has no key '{unknown[0]}'.\nFix: its only key is resolvers.")
    module = settings.get("resolvers")
    if module is None:
        return
    try:
        importlib.import_module(module)
    except Exception as e:
        raise ConfigError(
            f"{file.name}: {_TABLE} resolvers={module}: could not be imported: {type(e).__name__}: {e}\n"
            'Fix: a module of the project, as resolvers = "my_project.resolvers"; register with replace=True.'
        ) from e


def know(runtime: Mapping[str, Any]) -> None:
    """Let `${hydra:runtime.…}` resolve from Hydra's node `hydra.runtime` from now on."""
    _RUNTIME.set(runtime)


@contextmanager
def knowing(runtime: Mapping[str, Any]) -> Iterator[None]:
    """Let it resolve from another node meanwhile."""
    token = _RUNTIME.set(runtime)
    try:
        yield
    finally:
        _RUNTIME.reset(token)


def plain_runtime(cfg: DictConfig) -> dict[str, Any]:
    """Hydra's node `hydra.runtime` as it is: a path in it may have `${` in its name."""
    runtime: Any = OmegaConf.to_container(cfg.hydra.runtime, resolve=False)
    return {str(key): value for key, value in runtime.items()}


def _of_hydra(path: str) -> Any:
    runtime = _RUNTIME.get()
    if runtime is not None and path == "runtime.cwd":
        return runtime["cwd"]
    if runtime is not None and path.startswith(_CHOICES) and path.removeprefix(_CHOICES) in runtime["choices"]:
        return runtime["choices"][path.removeprefix(_CHOICES)]
    directory = "; a callback's relative path is in the run directory" if path == "runtime.output_dir" else ""
    raise ValueError(f"hydra:{path} is not known when a run is planned; {_CHOICES}GROUP and runtime.cwd are{directory}")

"""Where config files are looked for, and in which order they shadow each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import hpcexp
from hpcexp.errors import ConfigError


def packaged_conf() -> Path:
    """The conf/ that came with hpcexp: inside the package when installed, beside it in a checkout."""
    package = Path(hpcexp.__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_dirs(project: Path, config_dir: Path | None) -> tuple[Path, ...]:
    """Directories of config files; an earlier one shadows the later ones file by file."""
    found: list[Path] = []
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: there is no such directory.")
        found.append(config_dir.resolve())
    own = (project / "conf").resolve()
    packaged = packaged_conf()
    if own.is_dir() and own != packaged:
        found.append(own)
    return (*found, packaged)


def source_dirs(sources: Iterable[tuple[str, str]]) -> Iterator[Path]:
    """The directories among Hydra's sources of config files, each given by scheme and path."""
    for scheme, path in sources:
        if scheme == "file":
            yield Path(path).resolve()
        elif scheme == "pkg" and path != "hydra.conf" and (spec := find_spec(path.replace("/", "."))):
            yield from map(Path, spec.submodule_search_locations or ())


def describe(path: Path, project: Path) -> str:
    """A config file as a person would name it."""
    path = path.resolve()
    if path.is_relative_to(project.resolve()):
        return str(path.relative_to(project.resolve()))
    packaged = packaged_conf()
    if path.is_relative_to(packaged):
        return f"hpcexp/conf/{path.relative_to(packaged)}"
    return str(path)

"""`model.init_from`: weights of another run or file, put into a new run's model before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hpcexp.errors import ConfigError, RunError
from hpcexp.files.atomic import sha256
from hpcexp.plan import InitialWeights
from hpcexp.schema.settings import ModelSettings
from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint

_SHOWN = 5
"""Names in a message."""


def load_initial(network: nn.Module, weights: InitialWeights, settings: ModelSettings) -> str:
    """Load what the file has for the network; a line that says what. ConfigError where `init_strict` asks for more."""
    path = Path(weights.path)
    if not path.is_file() or sha256(path) != weights.sha256:
        raise RunError(
            f"model.init_from={settings.init_from}: {path} is not the file that was planned with.\n"
            "Fix: have it back, or plan again with --fresh."
        )
    own, file = network.state_dict(), _named(read_checkpoint(path))
    taken = _renamed(file, own, settings.init_prefix)
    excluded = {name for name in {**own, **taken} if any(_matches(name, p) for p in settings.init_exclude)}
    missing = [name for name in own if name not in taken and name not in excluded]
    unknown = [name for name in taken if name not in own and name not in excluded]
    chosen = {name: value for name, value in taken.items() if name in own and name not in excluded}
    if not chosen:
        raise ConfigError(
            f"model.init_from={settings.init_from}: no weight of the file is one of the model's.\n"
            f"The file has {_few(file)}; the model {_few(own)}.\nFix: model.init_prefix=…"
        )
    if wrong := [name for name, value in chosen.items() if value.shape != own[name].shape]:
        shapes = f"{tuple(chosen[wrong[0]].shape)} in the file, {tuple(own[wrong[0]].shape)} in the model"
        raise ConfigError(
            f"model.init_from={settings.init_from}: {_few(wrong)} has another shape: {shapes}.\n"
            f"Fix: 'model.init_exclude=[{wrong[0]}]' leaves it as it is initialised."
        )
    if settings.init_strict and (missing or unknown):
        parts = [f"the file lacks {_few(missing)}"] if missing else []
        parts += [f"the model lacks {_few(unknown)}"] if unknown else []
        raise ConfigError(
            f"model.init_from={settings.init_from}: {', and '.join(parts)}.\n"
            "Fix: model.init_exclude=[…] names what may differ; model.init_strict=false lets all of it."
        )
    network.load_state_dict(chosen, strict=False)
    left = f"; {_few(missing)} as initialised" if missing or excluded else ""
    return f"{len(chosen)} of {len(own)} tensors of the model are those of {path}{left}"


def _named(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint of hpcexp's or Lightning's, or in a plain state_dict."""
    weights = loaded.get("state_dict", loaded.get("model", loaded))
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)} if isinstance(weights, Mapping) else {}
    if not tensors:
        raise ConfigError("model.init_from: the file has no weights by name.\nFix: a checkpoint or a saved state_dict.")
    return tensors


def _renamed(file: Mapping[str, Tensor], own: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Names as in the model: without `prefix`, and without the `model.` that checkpoints of packaged tasks have."""
    names = {name: name for name in file}
    if all(name.startswith("model.") for name in file) and not any(name.startswith("model.") for name in own):
        names = {name: name.removeprefix("model.") for name in file}
    return {own.removeprefix(prefix): file[name] for name, own in names.items() if own.startswith(prefix)}


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _few(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown, more = list(names)[:_SHOWN], len(names) - _SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "") or "none"

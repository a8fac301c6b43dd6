"""Hydra's sources of config files, which here read them by the rules of `yaml_files`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source, importlib_resources_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from hpcexp.compose.yaml_files import decoded, load_yaml
from hpcexp.text.formatting import near

_HEADER = 512
"""Characters in which Hydra looks for a header."""


def read_files_by_our_rules() -> None:
    """Have Hydra use the sources below in this process."""
    Plugins.instance()  # registers Hydra's own
    types = SourcesRegistry.instance().types
    types["file"], types["pkg"] = FileConfigSource, ImportlibResourcesConfigSource


# They have the names of those that they replace: Hydra refuses to register another for a scheme in a worker.


class FileConfigSource(file_config_source.FileConfigSource):
    """Files in a directory."""

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of a file."""
        path = Path(os.path.realpath(Path(self.path) / self._normalize_file_name(config_path)))
        if not path.exists():
            raise ConfigLoadError(f"Config not found : {path}")
        return _result(self, path.read_bytes(), near(path), config_path)


class ImportlibResourcesConfigSource(importlib_resources_config_source.ImportlibResourcesConfigSource):
    """Files in a package."""

    _config_path = ""

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of a file."""
        self._config_path = config_path
        return super().load_config(config_path)

    def _read_config(self, res: Any) -> ConfigResult:
        return _result(self, res.read_bytes(), str(res), self._config_path)


def _result(source: ConfigSource, content: bytes, name: str, config_path: str) -> ConfigResult:
    text = decoded(content, name)
    header = ConfigSource._get_header_dict(text[:_HEADER])
    data = load_yaml(text, name, _package(header["package"], config_path))
    config = OmegaConf.create({data: None} if isinstance(data, str) else data if data is not None else {})
    path = f"{source.scheme()}://{source.path}"
    return ConfigResult(config=config, path=path, provider=source.provider, header=header)


def _package(header: str | None, config_path: str) -> str:
    group = config_path.rpartition("/")[0].replace("/", ".")
    if header is None:
        return group
    return header.replace("_global_", "").replace("_group_", group).strip(".")

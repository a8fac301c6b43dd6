"""What is left out of Hydra's composing changes nothing that it composes."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import write_conf
from hydra._internal import defaults_list
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_store import ConfigStore

from hpcexp.compose.composer import Composer


def test_a_defaults_list_that_interpolates_sees_the_choices(project: Path) -> None:
    """Those of the files before it and those of the command line."""
    model = "defaults:\n  - /optimizer@extra: ${optimizer}\n_target_: hpcexp.models.mlp.MLP\n"
    write_conf(project, {"model/paired.yaml": model})
    composer = Composer(project)
    assert ["torch.optim.AdamW", "torch.optim.SGD"] == [
        composer.compose(["model=paired", f"optimizer={name}"]).config["model"]["extra"]["_target_"]
        for name in ("adamw", "sgd")
    ]


def test_choices_are_collected_for_lists_that_interpolate_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would make a configuration of all choices for each of twenty lists."""
    collect = Mock(wraps=defaults_list._create_interpolation_map.__wrapped__)
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", collect)
    write_conf(project, {"model/paired.yaml": "defaults:\n  - /optimizer@extra: ${optimizer}\n"})
    composer = Composer(project)
    composer.compose([])
    assert 0 == collect.call_count
    composer.compose(["model=paired"])
    assert 1 == collect.call_count


def test_a_search_path_counts_for_its_own_composition_alone(project: Path) -> None:
    """Compositions share the config files' sources, and one that has more keeps them to itself."""
    write_conf(project / "more", {"optimizer/slow.yaml": "_target_: torch.optim.SGD\nlr: 0.5\n"})
    composer = Composer(project)
    before = composer.loader.repository.get_sources()
    found = composer.compose([f"hydra.searchpath=[file://{project / 'more' / 'conf'}]", "optimizer=slow"])
    assert (0.5, ()) == (found.config["optimizer"]["lr"], found.problems)
    assert before == composer.loader.repository.get_sources()
    assert composer.compose(["optimizer=slow"]).problems


def test_a_composition_does_not_copy_the_structured_configs(project: Path) -> None:
    """They are the process's; Hydra copies each before it changes it."""
    source = CachingConfigRepository(Composer(project).loader.repository).get_schema_source()
    assert source.store is ConfigStore.instance()

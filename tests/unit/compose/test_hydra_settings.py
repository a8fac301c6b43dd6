"""Every setting of Hydra's node is obeyed or refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import Said, write_conf
from hydra.types import RunMode
from omegaconf import OmegaConf

from hpcexp.compose.blame import blame
from hpcexp.compose.composer import Composer
from hpcexp.compose.hydra_settings import OBEYED, REFUSED
from hpcexp.launch.provenance.origins import origin_facts
from hpcexp.planner import prepare
from hpcexp.rundir import RunDir

AXES = "# @package _global_\nname: x\nhydra:\n  sweeper:\n    params: {seed: '1,2', optimizer.lr: '0.1,0.2'}\n"


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


def all_settings() -> list[str]:
    """Every setting of Hydra's node, as Hydra itself makes it."""
    loader = Composer(Path.cwd()).loader
    node = OmegaConf.to_container(loader.load_configuration(None, [], RunMode.RUN).hydra, resolve=False)
    # An override cannot name the choice of a group in a group.
    return sorted(leaf for leaf in leaves(node) if "/" not in leaf)


@pytest.mark.parametrize("setting", all_settings())
def test_no_setting_of_hydra_is_ignored(hpcexp: Callable[..., Said], project: Path, setting: str) -> None:
    """Each of Hydra's default configuration is in exactly one of the tables, and one that is refused says so."""
    tables = [key for table in (OBEYED, REFUSED) for key in table if f"{setting}.".startswith(f"{key}.")]
    assert 1 == len(tables), tables
    if tables[0] in REFUSED:
        value = "[x]" if setting in ("job.env_copy", "overrides.hydra", "overrides.task") else "7"
        said = hpcexp("plan", f"++hydra.{setting}={value}")
        assert 2 == said.status
        assert REFUSED[tables[0]] in said.err or "hydra.job.env_copy: " in said.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("run: {dir: elsewhere}", ["hydra.run.dir=elsewhere: ", "Fix: run.root=…"]),
        ("sweep: {dir: elsewhere, subdir: x}", ["hydra.sweep.dir=elsewhere: ", "hydra.sweep.subdir=x: "]),
        ("job: {env_set: {NCCL_DEBUG: INFO}}", ["hydra.job.env_set: ", "NAME=value hpcexp train"]),
        ("job: {env_copy: [HOME]}", ["hydra.job.env_copy: "]),
        ("job: {env_copy: [NO_SUCH_VARIABLE]}", ["hydra.job.env_copy: "]),
        ("job: {chdir: true}", ["hydra.job.chdir=True: "]),
        ("job: {name: mine}", ["hydra.job.name=mine: ", "Fix: name=…"]),
        ("job: {config: {override_dirname: {exclude_keys: [seed]}}}", ["hydra.job.config: ", "run.label"]),
        ("verbose: [hpcexp]", ["hydra.verbose: "]),
        ("output_subdir: .mine", ["hydra.output_subdir=.mine: "]),
        ("job_logging: {root: {level: DEBUG}}", ["hydra.job_logging: ", "logs/rank-N.log"]),
        ("help: {header: x}", ["hydra.help: "]),
        ("callbacks: {own: {_target_: own.Callback}}", ["hydra.callbacks (own) are called for a multirun"]),
        ("sweeper: {params: {seed: '1,2'}}", ["hydra.sweeper.params has axes (seed)", "add -m"]),
    ],
)
@pytest.mark.parametrize("file", ["experiment/x.yaml", "config.yaml"])
def test_settings_in_files_are_refused(
    hpcexp: Callable[..., Said], project: Path, file: str, content: str, words: list[str]
) -> None:
    """In a group's file and in a primary config."""
    from hpcexp.compose.sources import packaged_conf

    if file == "config.yaml":
        primary = (packaged_conf() / "config.yaml").read_text().partition("\nhydra:")[0]
        write_conf(project, {file: f"{primary}\nhydra:\n  {content}\n"})
    else:
        write_conf(project, {file: f"# @package _global_\nname: x\nhydra:\n  {content}\n"})
    said = hpcexp("plan", *(["experiment=x"] if file != "config.yaml" else []))
    assert 2 == said.status
    assert all(word in said.err for word in words), said.err


def test_a_primary_config_with_hydras_defaults_is_fine(hpcexp: Callable[..., Said], project: Path) -> None:
    """What nobody has set is refused to nobody."""
    from hpcexp.compose.sources import packaged_conf

    primary = (packaged_conf() / "config.yaml").read_text().partition("\nhydra:")[0]
    plain = "\n".join(line for line in primary.splitlines() if "override hydra" not in line)
    write_conf(project, {"config.yaml": f"{plain}\n"})
    said = hpcexp("plan")
    assert (0, "") == (said.status, said.err)


@pytest.mark.parametrize(
    "override", ["hydra/launcher=joblib", "hydra/sweeper=optuna", "hydra.sweeper.max_batch_size=2"]
)
def test_what_starts_jobs_needs_a_multirun(hpcexp: Callable[..., Said], override: str) -> None:
    """On the command line of one run it would do nothing."""
    said = hpcexp("plan", override)
    assert 2 == said.status
    assert "Fix: add -m." in said.err


@pytest.mark.parametrize("where", ["file", "override", "primary"])
def test_the_mode_may_ask_for_a_multirun(hpcexp: Callable[..., Said], project: Path, where: str) -> None:
    """As in the common templates: without -m."""
    from hpcexp.compose.sources import packaged_conf

    if where == "primary":
        primary = (packaged_conf() / "config.yaml").read_text()
        write_conf(project, {"config.yaml": f"{primary}  mode: MULTIRUN\n"})
        given = ["seed=1,2", "optimizer.lr=0.1,0.2"]
    elif where == "file":
        write_conf(project, {"experiment/x.yaml": f"{AXES}  mode: MULTIRUN\n"})
        given = ["experiment=x"]
    else:
        given = ["seed=1,2", "optimizer.lr=0.1,0.2", "hydra.mode=MULTIRUN"]
    said = hpcexp("plan", *given)
    assert 0 == said.status, said.err
    assert "4 jobs: 4 runs" in said.out


def test_the_mode_cannot_contradict_the_command(hpcexp: Callable[..., Said]) -> None:
    """Hydra would take one of both."""
    said = hpcexp("plan", "-m", "seed=1,2", "hydra.mode=RUN")
    assert (2, True) == (said.status, "contradict each other" in said.err)


@pytest.mark.parametrize(
    ("overrides", "is_refused"),
    [
        (["experiment=x"], False),
        (["experiment=x,y"], True),
        (["experiment=choice(x,y)", "seed=1"], True),
        (["experiment=y", "debug=null,axes"], True),
        (["experiment=y,z"], False),
    ],
)
def test_axes_of_a_file_that_is_an_axis_itself_are_refused(
    hpcexp: Callable[..., Said], project: Path, overrides: list[str], is_refused: bool
) -> None:
    """The sweep has begun when such a file is read; two jobs ran where four were asked for."""
    plain = "# @package _global_\nname: NAME\n"
    files = {"x.yaml": AXES, "y.yaml": plain.replace("NAME", "y"), "z.yaml": plain.replace("NAME", "z")}
    write_conf(project, {f"experiment/{name}": content for name, content in files.items()})
    write_conf(project, {"debug/axes.yaml": AXES.replace("name: x\n", "")})
    if "debug=null,axes" in overrides:
        overrides = ["experiment=y", "debug=axes,fast"]
    said = hpcexp("plan", "-m", *overrides)
    assert is_refused == ("hydra.sweeper.params is in a file of one of its jobs" in said.err), said.err
    assert (2 if is_refused else 0) == said.status


def test_axes_of_a_sweeps_base_are_refused(hpcexp: Callable[..., Said], project: Path) -> None:
    """A sweep in a file says its axes itself."""
    write_conf(project, {"experiment/x.yaml": AXES})
    (project / "sweeps").mkdir()
    (project / "sweeps" / "mine.yaml").write_text("question: x\nbase: [experiment=x]\naxes: {seed: [1, 2]}\n")
    said = hpcexp("sweep", "mine", "--plan")
    assert 2 == said.status
    assert "hydra.sweeper.params is in a file of its base, which cannot change a sweep." in said.err


def test_callbacks_with_methods_that_are_not_called_are_refused(hpcexp: Callable[..., Said], project: Path) -> None:
    """Read from their source."""
    code = "class Own:\n    def on_multirun_start(self, config, **kw): pass\n"
    (project / "own_hooks.py").write_text(code)
    given = ("plan", "-m", "seed=1,2", "+hydra.callbacks={own:{_target_:own_hooks.Own}}")
    assert 0 == hpcexp(*given).status
    (project / "own_hooks.py").write_text(f"{code}    def on_job_end(self, config, job_return, **kw): pass\n")
    said = hpcexp(*given)
    assert 2 == said.status
    assert "hydra.callbacks.own: hpcexp calls on_multirun_start and on_multirun_end only, not on_job_end." in said.err


@pytest.mark.parametrize("how", ["config-dir", "searchpath", "searchpath in the primary config", "package"])
def test_lineage_names_the_file_that_was_used(project: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Also where a file of that name is in the project."""
    from hpcexp.compose.sources import packaged_conf

    def content(seed: int) -> str:
        return f"# @package _global_\nname: x\nseed: {seed}\n"

    directory = project / "more" / "conf2"
    (directory / "experiment").mkdir(parents=True)
    (directory / "experiment" / "x.yaml").write_text(content(7))
    (directory / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(project / "more"))
    if how == "config-dir":
        write_conf(project, {"experiment/x.yaml": content(3)})
    overrides, config_dir = ["experiment=x"], None
    if how == "config-dir":
        config_dir = directory
    elif how == "searchpath in the primary config":
        primary = (packaged_conf() / "config.yaml").read_text()
        write_conf(project, {"config.yaml": f"{primary}  searchpath: [file://{directory}]\n"})
    else:
        overrides += [f"hydra.searchpath=[{'pkg://conf2' if how == 'package' else directory}]"]
    composer = Composer(project, config_dir)
    made = composer.compose(overrides)
    assert 7 == made.config["seed"]
    plan = prepare(made, project, ["hpcexp"])
    facts = origin_facts(plan, RunDir(Path(plan.run_dir)), 1, {})["experiment"]
    assert ("more/conf2/experiment/x.yaml", {"name": "x", "seed": "7"}) == (facts["file"], facts["sets"])
    assert "more/conf2/experiment/x.yaml:3" in blame(composer, overrides, "seed")[-1].source


def test_a_search_path_that_is_not_there_is_an_error(hpcexp: Callable[..., Said]) -> None:
    """Hydra would warn, and not find the files."""
    said = hpcexp("plan", "hydra.searchpath=[nowhere]")
    assert (2, True) == (said.status, "there is no directory or package nowhere" in said.err)

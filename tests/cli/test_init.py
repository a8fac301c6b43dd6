"""`hpcexp init`: a project that plans, trains and passes its own tests, or a message and nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers import LEAN, Said

from hpcexp.cli.init import PLACEHOLDER, TEMPLATE, name_problems, package_name, project_files, write_project
from hpcexp.cli.main import run
from hpcexp.compose.sources import packaged_conf
from hpcexp.errors import HpcexpError

ROOT = Path(__file__).parents[2]


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m …` in the project."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": path}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `init` writes it; the tests only read it and let it run elsewhere."""
    directory = tmp_path_factory.mktemp("init") / "Wave-Study"
    assert run(["init", str(directory)]) == 0
    return directory


def test_project_is_complete_and_named(written: Path) -> None:
    """The package is named after the directory, no placeholder is left, and there is nothing else beside it."""
    files = [f for f in written.rglob("*") if f.is_file()]
    assert len(project_files()) == len(files)
    assert (written / "wave_study" / "model.py").is_file()
    assert (written / ".gitignore").is_file()
    assert [] == [f for f in files if PLACEHOLDER in f.read_text(encoding="utf-8")]
    assert [written] == list(written.parent.iterdir())


def test_project_is_planned_with_the_facts_of_its_data(in_written: Callable[..., str]) -> None:
    """Without torch: sizes, steps and the project's own options."""
    told = in_written("plan")
    assert "waveforms/base-s1-" in told
    assert "data=waveforms" in told
    assert "model=signalnet" in told
    assert "1,600 train, 400 val, 800 test; inputs 1 × 64, 4 classes" in told
    assert "250 (25 in each of 10 epochs)" in told


def test_own_file_shadows_the_packaged_one(in_written: Callable[..., str]) -> None:
    """`--blame` names the project's trainer/default.yaml; what the project does not shadow comes from hpcexp."""
    own = [line for line in in_written("plan", "--blame", "trainer.max_epochs").splitlines() if "counts" in line]
    packaged = in_written("plan", "--blame", "optimizer.lr")
    assert "conf/trainer/default.yaml" in own[0]
    assert "shadows hpcexp/conf/trainer/default.yaml" in own[0]
    assert "hpcexp/conf/optimizer/adamw.yaml" in packaged


def test_packaged_options_are_still_there(in_written: Callable[..., str]) -> None:
    """Own options add to the packaged ones."""
    assert "model=mlp" in in_written("plan", "model=mlp", "optimizer=sgd")


def test_every_experiment_of_the_project_is_planned(in_written: Callable[..., str], written: Path) -> None:
    """With its own name."""
    for file in (written / "conf" / "experiment").glob("*.yaml"):
        assert in_written("plan", f"experiment={file.stem}").startswith(f"{file.stem}/")


def test_primary_config_is_the_packaged_one_with_options_of_its_own() -> None:
    """The template's config.yaml takes the place of ours, so what changes there must change here too."""
    own, packaged = (
        yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))
        for conf in (TEMPLATE / "conf", packaged_conf())
    )
    changed = {"data": "waveforms", "model": "signalnet", "experiment": "waveforms"}
    expected = [
        entry if isinstance(entry, str) else {k: changed.get(k, v) for k, v in entry.items()}
        for entry in packaged["defaults"]
    ]
    own["defaults"].remove({"sweep": None})
    assert {**packaged, "defaults": expected} == own


def test_tutorial_shows_the_files_that_init_writes() -> None:
    """Every file that it prints and the template has, word for word."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    printed = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", tutorial, flags=re.MULTILINE | re.DOTALL))
    written = {str(f).replace(PLACEHOLDER, "study"): f for f in project_files()}
    shared = printed.keys() & written.keys()
    assert {"study/model.py", "study/data.py", "conf/config.yaml", "conf/sweep/capacity.yaml"} <= shared
    for name in shared:
        text = (TEMPLATE / written[name]).read_text(encoding="utf-8")
        assert text.replace(PLACEHOLDER, "study") == printed[name], name


@pytest.mark.slow
def test_project_passes_its_own_tests(written: Path) -> None:
    """Which train one epoch through the command line and plan the sweep."""
    done = python(written, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.fixture
def in_written(written: Path, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What `hpcexp ARGUMENT…` prints in the written project, in this process."""
    monkeypatch.chdir(written)

    def call(*arguments: str) -> str:
        said = hpcexp(*arguments)
        assert 0 == said.status, said.err
        return said.out

    return call


@pytest.mark.slow
def test_default_experiment_trains_and_classifies_a_file(in_written: Callable[..., str], tmp_path: Path) -> None:
    """One epoch, then `predict` reads a file by the project's data set."""
    lean = (*LEAN, "launch.isolation=warm", "tracking=off")
    in_written("train", "trainer.max_epochs=1", *lean, f"run.root={tmp_path}")
    assert "examples/square.txt" in in_written("predict", "--root", str(tmp_path), "last", "examples/square.txt")


@pytest.mark.slow
def test_sweep_file_runs_every_combination(in_written: Callable[..., str], tmp_path: Path) -> None:
    """`-m sweep=capacity`, cut short to one batch each."""
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_eval_batches=1"]
    told = in_written("train", "-m", "sweep=capacity", *short, *LEAN, "tracking=off", f"run.root={tmp_path}")
    assert 4 == len(list(tmp_path.glob("waveforms/*/summary.json")))
    assert "4 jobs: 4 finished" in told


def test_an_empty_directory_is_filled_and_kept(tmp_path: Path) -> None:
    """`hpcexp init .` does not pull the directory away under the shell."""
    target = tmp_path / "study"
    target.mkdir()
    before = target.stat().st_ino
    assert run(["init", str(target)]) == 0
    assert before == target.stat().st_ino
    assert {"conf", "study", "tests"} <= {f.name for f in target.iterdir()}
    assert [] == list(target.glob(".hpcexp-init-*"))


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And every other mistake is told with it."""
    (tmp_path / "notes.txt").write_text("mine")
    assert run(["init", str(tmp_path), "--name", "my-study"]) == 2
    told = capsys.readouterr().err
    assert "2 problems:" in told
    assert f"{tmp_path} is not empty" in told
    assert "--name my-study: not the name of a Python package" in told
    assert ["notes.txt"] == [f.name for f in tmp_path.iterdir()]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_behind_a_file_is_refused(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the name of what is in the way."""
    (tmp_path / "file").write_text("mine")
    assert run(["init", str(tmp_path / place), "--name", "study"]) == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_rights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is made."""
    tmp_path.chmod(0o500)
    assert run(["init", str(tmp_path / "study")]) == 2
    tmp_path.chmod(0o700)
    assert f"you may not write in {tmp_path}" in capsys.readouterr().err
    assert [] == list(tmp_path.iterdir())


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the system's words."""
    assert run(["init", str(tmp_path / ("x" * 300)), "--name", "study"]) == 2
    assert "cannot be used: File name too long" in capsys.readouterr().err


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """A package name longer than the file system takes fails when half of the files are there."""
    with pytest.raises(HpcexpError, match="cannot be written: File name too long"):
        write_project(tmp_path / "study", "x" * 300)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my-study", "not the name of a Python package"),
        ("2026", "not the name of a Python package"),
        ("", "not the name of a Python package"),
        ("class", "not the name of a Python package"),
        ("conf", "the project has a folder of that name"),
        ("torch", "Python has a module of that name"),
        ("hpcexp", "Python has a module of that name"),
        ("wave", "Python has a module of that name"),
    ],
)
def test_a_name_that_cannot_be_a_package_is_refused(name: str, why: str) -> None:
    """With the reason, and a name that would do."""
    [problem] = name_problems(name, given=True)
    assert problem.startswith(f"--name {name}: ")
    assert why in problem
    assert "Fix: --name " in problem


def test_a_folder_of_the_name_in_the_current_directory_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is installed would be hidden."""
    (tmp_path / "my_study").mkdir()
    (tmp_path / "my_study" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [] == list(name_problems("my_study", given=True))


def test_package_is_named_after_the_directory() -> None:
    """In the way Python spells names."""
    assert "my_study_2" == package_name(Path("/somewhere/My-Study.2"))
    assert [] == list(name_problems("my_study_2", given=False))

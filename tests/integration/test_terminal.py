"""What hpcexp prints of others' names, messages and files: control characters are shown and never obeyed."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers import Said, TrainedRun, command, environment, write_conf, write_module

from hpcexp.launch.base.display import Bar, Lines
from hpcexp.rank_protocol import Progress
from hpcexp.rundir import RunDir
from hpcexp.text.formatting import csv_row, markdown_table, pairs, shown, table
from hpcexp.text.terminal import guarded

ORDERS = "\x1b[31m\x1b]52;c;QUJD\x07\x1b]8;;http:x\x1b\\\b\x7f\x9b2J\x85\u202e\u2066\u2028\u200b\ufeff\u3164\ud800"
"""Colour, clipboard, link, bell, backspace, delete, C1, overrides, separators, what is not seen, no character."""
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\u3164\ufeff]")


@pytest.fixture(scope="module")
def hostile(trained: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose runs have orders for a terminal wherever a file has room for text."""
    project = tmp_path_factory.mktemp("hostile")
    orders = ORDERS.encode(errors="replace").decode()
    place = project / "runs" / f"odd{orders}" / f"a{orders}-s1-12345678"
    shutil.copytree(trained.run.path, place, symlinks=True)
    run = RunDir(place)
    plan = yaml.safe_load(run.plan.read_text())
    plan |= {"name": f"n{orders}", "experiment": f"e{orders}", "overrides": [f"seed=1{orders}"]}
    plan["tracking_uri"] = f"sqlite:///{project}/mlflow.db"
    plan["lineage"] |= {"host": f"h{orders}", "command": f"c{orders}", "git.commit": f"g{orders}"}
    plan["config"]["notes"] = f"N{orders}"
    run.plan.write_text(yaml.safe_dump(plan))
    status = json.loads(run.status.read_text())
    run.status.write_text(json.dumps({**status, "state": "failed", "cause": f"why{orders}"}))
    run.mlflow.write_text(json.dumps({"problem": f"HTTP 500 <body>{orders}"}))
    summary = json.loads(run.summary.read_text())
    summary["test"][f"test/m{orders}"] = 0.5
    run.summary.write_text(json.dumps(summary))
    run.rank_log(0).write_text(f"step 1\rstep 2\r\n{orders}\n")
    broken = project / "runs" / "odd" / os.fsdecode(b"broken\xff" + orders.encode())
    broken.mkdir(parents=True)
    (broken / "plan.yaml").write_text("no plan")
    return project


@pytest.mark.parametrize(
    "argv",
    [
        ("runs",),
        ("show", "12345678"),
        ("show", "12345678", "--log"),
        ("show", "12345678", "--config"),
        ("verify", "12345678"),
        ("compare",),
        ("compare", "--format", "csv"),
        ("sync",),
        ("why", "12345678"),
        ("show", f"none{ORDERS[:-1]}"),
        (f"verb{ORDERS[:-1]}",),
        ("runs", f"--{ORDERS[:-1]}"),
        ("train", f"model={ORDERS[:-1]}"),
    ],
    ids=lambda argv: shown("-".join(argv))[:24],
)
def test_no_verb_obeys_what_is_in_files_and_arguments(hostile: Path, argv: tuple[str, ...]) -> None:
    """The whole output of real commands, as bytes that a terminal would get."""
    said = command(*argv, cwd=hostile)
    assert None is OBEYED.search(said.out.replace("\r\n", "\n") + said.err), said
    # compare knows runs by the ends of their names; YAML has an escape of its own.
    is_told = "\\x1b" in said.out + said.err or "\\e[31m" in said.out
    assert is_told or argv[0] == "compare", said


def test_json_stays_json(hostile: Path) -> None:
    """What is escaped in it is escaped as JSON does, and is read as what it was."""
    said = command("runs", "--json", cwd=hostile)
    row = next(row for row in map(json.loads, said.out.splitlines()) if row["cause"])
    assert "\x1b" in row["cause"]
    assert "\x7f" in row["cause"]
    assert None is OBEYED.search(said.out)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_no_error(hostile: Path, encoding: str) -> None:
    """Terminals without UTF-8 get escapes and question marks."""
    env = environment(PYTHONIOENCODING=encoding)
    argv = [sys.executable, "-m", "hpcexp", "show", "12345678"]
    done = subprocess.run(argv, cwd=hostile, env=env, capture_output=True, check=False)
    assert (0, b"") == (done.returncode, done.stderr)
    assert b"\\u202e" in done.stdout


def test_output_of_ones_own_training_passes_as_it_is(project: Path, train: Callable[..., Said]) -> None:
    """Colours of the user's own code reach his terminal; what is said of its end does not obey them."""
    write_module(
        project,
        "colourful",
        """
        import torch

        class Model(torch.nn.Module):
            def __init__(self, in_shape, num_classes, fails=False):
                super().__init__()
                if fails:
                    raise ValueError("\\x1b[2Jgone")
                print("\\x1b[32mgreen\\x1b[0m")
                self.layer = torch.nn.Linear(64, num_classes)

            def forward(self, x):
                return self.layer(x.flatten(1))
        """,
    )
    asked = ("debug=fast", "~model", "+model._target_=colourful.Model")
    said = train(*asked)
    assert (0, "") == (said.status, said.err), said
    assert "\x1b[32mgreen\x1b[0m\n" in said.out
    said = train(*asked, "+model.fails=true")
    assert 2 == said.status, said
    assert "\\x1b[2Jgone" in said.err
    assert "\x1b" not in said.err


def test_a_bar_and_lines_keep_their_own_orders(capsys: pytest.CaptureFixture[str]) -> None:
    """The bar is redrawn in place, beside metrics with orders in their names."""
    event = Progress(0, 5, 10, "train", 1, 2, 1.0, {"a\x1b[2J\nb": 0.5})
    with guarded():
        bar = Bar()
        bar.progress(event)
        bar.line("\x1b[32mown")
        bar.close()
        Lines().progress(event)
    printed = capsys.readouterr()
    assert "\r" in printed.err
    assert "\x1b[2J" not in printed.err + printed.out
    assert "\x1b[32mown\n" in printed.out


def test_a_sweep_on_a_terminal_draws_its_table(project: Path) -> None:
    """Cursor movements of the table pass; orders in what it shows do not."""
    leader, open_run = pty.openpty()
    code = """
        import sys
        from types import SimpleNamespace as N
        from hpcexp.text.terminal import guard
        guard()
        from hpcexp.sweep.report.live_view import Table
        table = Table(1)
        plan = N(experiment="e", name="n\\x1b]0;title\\x07", config={"trainer": {"monitor": "m"}})
        job = N(entry=N(job=1), plan=plan)
        table.began(job)
        table.refresh(1, "\\x1b]0;why\\x07")
        table.say(job, "\\x1b]0;said\\x07")
        print("\\x1b]0;printed\\x07")
        table.running[1].line("\\x1b[32mown")
        table.close()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())],
        env=environment(TERM="xterm", COLUMNS="200"),
        stdout=open_run,
        stderr=open_run,
    )
    os.close(open_run)
    text = b""
    while chunk := _read(leader):
        text += chunk
    assert 0 == process.wait(), text
    assert b"\x1b]0;" not in text, text
    for word in (b"said", b"printed"):
        assert b"\\x1b]0;" + word in text, text
    assert b"\x1b[2K" in text
    assert b"\x1b[32mown" in text


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: the other end is closed
        return b""


def test_tables_have_a_line_a_row() -> None:
    """A name with a line feed makes no line of its own; columns are as wide as what is shown."""
    assert ["name  n", "a\\nb  1", "c     2"] == table(("name", "n"), [("a\nb", "1"), ("c", "2")]).splitlines()
    assert "  a\\nb  one\n        two" == pairs([("a\nb", "one\ntwo")])


def test_reports_have_neither_markup_nor_formulas() -> None:
    """A cell of Markdown is text; a cell of CSV is no formula, and a number stays one."""
    [_, _, row] = markdown_table(["a"], [["<img src=x>|\n[l](javascript:x)`"]]).splitlines()
    assert "| &lt;img src=x>\\|\\\\n\\[l\\](javascript:x)\\` |" == row
    given = ["=cmd|' /C calc'!A0", "@x", "-1e-3", "-inf", "+2", "-x", "\t=x", "plain", 3, None]
    assert ["'=cmd|' /C calc'!A0", "'@x", "-1e-3", "-inf", "+2", "'-x", "'\t=x", "plain", 3, None] == csv_row(given)


def test_what_can_be_seen_is_left_alone() -> None:
    """Letters of all scripts, combined characters and emoji, tabs and line ends."""
    text = "naïve Ωμέγα 漢字 עברית हिन्दी e\u0301 ❤\ufe0f\ttab\nline\r\nend"
    assert text == shown(text)
    assert shown(ORDERS) == shown(shown(ORDERS))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_completion_runs_no_command_of_a_files_name(project: Path) -> None:
    """bash expands the words that it is proposed, names of config files among them."""
    names = ("mlp2", "$(touch pwned)", "`touch pwned`", "$(touch${IFS}pwned)")
    write_conf(project, {f"model/{name}.yaml": "_target_: x.Y\n" for name in names})
    script = f"""
        hpcexp() {{ {sys.executable} -m hpcexp "$@"; }}
        eval "$(hpcexp -sc install=bash | sed 's/__main__.py/hpcexp/')"
        words=$(COMP_LINE='hpcexp plan model=' hpcexp -sc query=bash)
        compgen -o nospace -o default -W "$words" -- model=
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )
    assert "model=mlp2" in done.stdout.split(), done
    assert not (project / "pwned").exists()

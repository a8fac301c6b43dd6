"""What the README tells people to type works, from its first command to its last."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import FAST, REPOSITORY, Said, command

from hpcexp.files.documents import read_plain
from hpcexp.rundir import find_runs

NOT_RUN = {"ui": "it serves until Ctrl-C; what it starts is tested elsewhere"}
"""Verb → why its commands are left out here."""


def commands() -> list[str]:
    """The `hpcexp …` lines of the README's `sh` blocks, in their order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("hpcexp ") and line.split()[1] not in NOT_RUN]


def test_the_readme_shows_training_and_looking() -> None:
    """At the least the commands that everybody needs."""
    assert {"train", "plan", "runs"} <= {c.split()[1] for c in commands()}


@pytest.mark.slow
def test_every_command_of_the_readme_works(project: Path, hpcexp: Callable[..., Said]) -> None:
    """In order, in one empty directory; the first training is a process of its own, the others are cut short."""
    for i, line in enumerate(commands()):
        words = shlex.split(line, comments=True)[1:]
        is_training = words[0] in ("train", "sweep") and len(words) > 1 and not {"--cfg", "--status"} & set(words)
        short = (*FAST, "launch.isolation=warm") if is_training else ()
        if words[0] == "promote":  # of the first: the others MLflow hears nothing of
            words[1] = str(min(find_runs(project / "runs"), key=lambda run: read_plain(run.status)["started"]).path)
        is_own_process = not i or words[0] == "promote"  # MLflow's registry warns
        said = command(*words, cwd=project) if is_own_process else hpcexp(*words, *short)
        assert 0 == said.status, f"{line}\n{said.out}\n{said.err}"

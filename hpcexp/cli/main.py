"""`hpcexp VERB …`: finds the verb, runs it, and turns errors into messages and exit statuses."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hpcexp import __version__
from hpcexp.errors import ConfigError, HpcexpError, JobFailed, RunError, listed, suggest
from hpcexp.redaction import masked_text
from hpcexp.text.terminal import guard, guarded

VERBS = {
    "train": ("train", "run an experiment or, with -m, a sweep over every combination"),
    "plan": ("plan", "check everything and show what would run; starts nothing"),
    "sweep": ("sweep", "run or resume a sweep from a file in sweeps/, show its progress, stop it"),
    "runs": ("runs", "list runs"),
    "show": ("runs", "show one run: state, results, configuration, files"),
    "cancel": ("cancel", "end a running job with a checkpoint, from any machine that sees its directory"),
    "compare": ("compare", "show how runs differ, beside their results; means over seeds"),
    "why": ("why", "show how a run differs from one started now"),
    "reproduce": ("reproduce", "train a run again from what it recorded, and compare the results"),
    "verify": ("verify", "check that runs' files are unchanged since they ended"),
    "test": ("model", "evaluate a trained model again"),
    "predict": ("model", "classify files with a trained model"),
    "export": ("model", "write a trained model for other tools: torch.export, TorchScript, MLflow"),
    "promote": ("promote", "register a trained model in MLflow, under a name and an alias"),
    "ui": ("ui", "open the runs in MLflow"),
    "serve": ("serve", "serve MLflow to a group, with accounts"),
    "sync": ("sync", "upload to MLflow what it missed during a run"),
    "backup": ("backup", "back up runs, artifacts and databases, also while they are in use"),
    "restore": ("backup", "restore a backup"),
    "drill": ("drill", "kill a training, or change its devices, to test that the result stays the same"),
    "doctor": ("doctor", "report what works on this machine, and what does not"),
    "init": ("init", "create a project that trains at once"),
    "help": ("help", "explain a config group, option or key"),
}
"""Verb → module of hpcexp.cli that has a function of the verb's name, and what it does."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """The `hpcexp` command."""
    # Planning makes many small objects and no garbage worth collecting; jobs are processes of their own.
    gc.disable()
    _have_streams()
    status = run(sys.argv[1:], _more_arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Nothing is left to tidy up, and taking a thousand modules apart costs a tenth of a plan.
    os._exit(status)


def _more_arguments() -> list[str]:
    """Of a command that hpcexp itself has started: everybody can list processes, and an argument may be a secret."""
    file = os.environ.pop("HPCEXP_ARGUMENTS", None)
    if file is None:
        return []
    from hpcexp.files.documents import read_json

    try:
        return read_json(Path(file), list[str])
    except (OSError, RunError) as e:
        raise ConfigError(f"HPCEXP_ARGUMENTS={file}: no list of arguments ({e}).\nFix: unset HPCEXP_ARGUMENTS") from e


def _have_streams() -> None:
    """Where stdout or stderr was closed (`>&-`), what is printed goes nowhere; what an encoding lacks is a `?`."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    guard()


def run(argv: Sequence[str], more: Callable[[], Sequence[str]] = tuple) -> int:
    """Exit status of the command `argv` and `more`: 0 done, 1 a run failed, 2 a mistake the user can mend."""
    with guarded():
        return _run(argv, more)


def _run(argv: Sequence[str], more: Callable[[], Sequence[str]]) -> int:
    try:
        status = _called([*argv, *more()])
        sys.stdout.flush()
        return status
    except HpcexpError as e:
        print(masked_text(error_text(e)), file=sys.stderr)
        return 2
    except JobFailed as e:
        print(masked_text(str(e)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:
        with contextlib.suppress(OSError):  # stderr may be on a full disk too
            print(_refusal_text(e), file=sys.stderr)
        return 2


def _called(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"hpcexp {__version__}")
        return 0
    verb, *rest = argv
    if verb in ("-sc", "--shell-completion"):
        from hpcexp.cli.shared.completion import complete

        return complete(rest, list(VERBS))
    if verb not in VERBS:
        raise ConfigError(_no_verb(verb))
    module = importlib.import_module(f"hpcexp.cli.{VERBS[verb][0]}")
    status: int = getattr(module, verb if verb != "help" else "explain")(rest)
    return status


def usage() -> str:
    """What `hpcexp --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in VERBS.items())
    return f"""usage: hpcexp VERB [ARGUMENT …]

Say what to run; hpcexp checks it, runs it and records it.

{verbs}

First:     hpcexp train                              train the default experiment
           hpcexp train optimizer.lr=0.01 seed=2     change anything with an override
           hpcexp plan model=cnn                     show what would run
           hpcexp train -m seed=1,2,3                run every combination
           hpcexp ui                                 look at the results
Using somebody else's run or project executes its code with your rights. hpcexp asks before it uses a run (--trust).

Each verb: hpcexp VERB --help                        Version: hpcexp --version
Completion: eval "$(hpcexp -sc install=bash)"        also zsh and fish"""


def error_text(error: HpcexpError) -> str:
    """Every problem of an error, counted where there are several."""
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    if len(problems) == 1:
        return problems[0]
    return "\n\n".join([f"{len(problems)} problems:", *problems])


def _refusal_text(error: OSError) -> str:
    """What the system refused, and the way out."""
    if error.errno in _NO_ROOM:
        return f"{error.filename or 'Output, or a file,'} cannot be written: {error.strerror}.\nFix: make room there."
    what = f"{error.filename}: " if error.filename else ""
    return f"{what}{error.strerror or error}.\nFix: check that file or connection, then repeat the command."


def _no_verb(verb: str) -> str:
    near = suggest(verb, VERBS)
    if "=" in verb:
        return f"'{verb}' is an override, not a verb.\nFix: hpcexp train {verb}"
    return f"hpcexp has no verb '{verb}'{'; ' + near if near else '.'}\nVerbs: {listed(VERBS)}."

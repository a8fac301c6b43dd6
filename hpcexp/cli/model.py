"""`hpcexp test`, `predict` and `export`: what a trained model is for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import ENOTEMPTY
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hpcexp.cli.shared.arguments import RUN_HELP, find_run, parser
from hpcexp.cli.shared.trust import add_trust, check_trust
from hpcexp.compare.provenance_diff import changed_data, code_of_run
from hpcexp.errors import RunError, listed
from hpcexp.lineage.code import imported_otherwise, is_of_hpcexp
from hpcexp.plan import load_plan
from hpcexp.rundir import RunDir
from hpcexp.targets.instantiate import on_path
from hpcexp.text.formatting import metric, near, pairs, table

if TYPE_CHECKING:
    from hpcexp.train.inference import Trained
    from hpcexp.train.tasks.task import Prediction

_OF_A_MODEL = ("hpcexp/models/", "hpcexp/data/")
"""Of hpcexp's own code what a model's outputs come from."""
_NAMED = 3
"""Changed files that are named."""
SUFFIXES = {"torch": "model.pt2", "torchscript": "model.pt", "mlflow": "model"}


def test(argv: Sequence[str]) -> int:
    """Metrics of a run's best weights."""
    p = parser("test", "Evaluate a run's best weights again, on the CPU.")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--split", choices=("test", "val"), default="test", help="which split of the data (default: test)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    add_trust(p)
    a = p.parse_args(argv)
    run = find_run(a.root, a.run)
    check_trust(run, is_trusted=a.trust)
    trained = trained_of(run)
    _warn([*edited_since(trained), *changed_data(trained.run)])
    from hpcexp.train.inference import evaluate

    found = evaluate(trained, a.split)
    print(json.dumps(found) if a.json else pairs((k, metric(v)) for k, v in found.items()))
    return 0


def predict(argv: Sequence[str]) -> int:
    """What a trained model says of files."""
    p = parser("predict", "Predict files, read as the run's data set reads them (for example pictures), or a split.")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("files", nargs="*", type=Path, metavar="FILE")
    p.add_argument("--split", choices=("train", "val", "test"), help="predict the samples of a split of the data")
    p.add_argument("--json", action="store_true", help="one JSON object per sample, with all that the model says")
    add_trust(p)
    a = p.parse_intermixed_args(argv)
    run = find_run(a.root, a.run)
    check_trust(run, is_trusted=a.trust)
    if bool(a.files) == bool(a.split):
        raise RunError(
            "predict takes files, or --split.\nFix: hpcexp predict RUN FILE…, or hpcexp predict RUN --split test"
        )
    trained = trained_of(run)
    _warn(edited_since(trained))
    from hpcexp.train.inference import predict as predicted
    from hpcexp.train.inference import predict_split

    answers = list(predict_split(trained, a.split) if a.split else predicted(trained, a.files))
    if a.split:
        named = [("sample", str(number)) for number in range(len(answers))]
    else:
        named = [("file", str(file)) for file in a.files]
    if a.json:
        for (kind, name), answer in zip(named, answers, strict=True):
            print(json.dumps(_as_json(kind, name, answer), default=str))
    else:
        rows = [_cells(name, answer) for (_, name), answer in zip(named, answers, strict=True)]
        print(table(("sample" if a.split else "file", "prediction", "probability"), rows))
    return 0


def export(argv: Sequence[str]) -> int:
    """A trained model for use without hpcexp."""
    p = parser("export", "Write a trained model for use without hpcexp, and check that its outputs are the same.")
    p.add_argument("run", help=RUN_HELP)
    formats = "torch: torch.export; torchscript; mlflow: a pyfunc model for MLflow's tools and servers"
    p.add_argument("--format", choices=tuple(SUFFIXES), default="torch", help=f"{formats} (default: torch)")
    p.add_argument("-o", "--output", type=Path, help="file to write (default: in export/ of the run directory)")
    add_trust(p)
    a = p.parse_args(argv)
    run = find_run(a.root, a.run)
    check_trust(run, is_trusted=a.trust)
    path = a.output or run.path / "export" / SUFFIXES[a.format]
    if path.exists():
        raise _exists(path)
    if a.format == "torch" and path.suffix != ".pt2":
        raise RunError(f"{path}: torch reads exported programs from .pt2 files only.\nFix: --output {path.stem}.pt2")
    trained = trained_of(run)
    _warn(edited_since(trained))
    with _named_once_whole(path) as made:
        if a.format == "mlflow":
            export_mlflow(trained, made)
        else:
            from hpcexp.train.export import export as exported

            exported(trained, a.format, made)
    print(a.output or near(path))
    return 0


def trained_of(run: RunDir) -> Trained:
    """The model with the run's best weights."""
    plan = load_plan(run.plan)
    on_path(Path(plan.lineage["project"]))
    from hpcexp.train.runtime.log_filters import import_lightning

    import_lightning(is_rank=False)
    from hpcexp.train.inference import load_trained

    return load_trained(run)


def edited_since(trained: Trained) -> list[str]:
    """Source files of the model that have been edited since it was trained: its weights are now in another one."""
    files = imported_otherwise(code_of_run(trained.run))
    return [file for file in files if not is_of_hpcexp(file) or file.startswith(_OF_A_MODEL)]


def _warn(changed: Sequence[str]) -> None:
    if changed:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        what = f"{listed(changed[:_NAMED])}{more} {'is' if len(changed) == 1 else 'are'}"
        print(f"warning: {what} not what the run was trained with (hpcexp why RUN shows more).", file=sys.stderr)


@contextmanager
def _named_once_whole(path: Path) -> Iterator[Path]:
    """Where to make what `path` is to be: whoever is killed leaves nothing there that somebody would use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        yield made
        try:
            if made.is_dir():
                made.rename(path)  # fails where there is a file, or a directory with something in it
            else:
                os.link(made, path)
        except (FileExistsError, NotADirectoryError) as e:
            raise _exists(path) from e
        except OSError as e:
            if e.errno == ENOTEMPTY:
                raise _exists(path) from e
            made.replace(path)  # a file system without hard links


def _exists(path: Path) -> RunError:
    return RunError(f"{path} exists already.\nFix: remove it, or --output another path.")


def export_mlflow(trained: Trained, path: Path) -> None:
    """The exported program inside an MLflow model directory."""
    from hpcexp.tracking.mlflow.pyfunc import save_pyfunc
    from hpcexp.train.export import examples
    from hpcexp.train.export import export as exported

    with TemporaryDirectory() as scratch:
        program = Path(scratch) / "model.pt2"
        exported(trained, "torch", program)
        example = examples(trained)
        arrays = {name: tensor.numpy() for name, tensor in example.tensors.items()}
        save_pyfunc(path, program, arrays, trained.plan, is_named=bool(example.named))


def _cells(name: str, p: Prediction) -> tuple[str, str, str]:
    if isinstance(p.value, list) and all(isinstance(v, float) for v in p.value):
        text = " ".join(metric(v) for v in p.value)
    else:
        text = p.value if isinstance(p.value, str) else json.dumps(p.value, default=str)
    return name, text, "-" if p.probability is None else f"{p.probability:.3f}"


def _as_json(kind: str, name: str, p: Prediction) -> dict[str, object]:
    return {kind: name, "prediction": p.value, **({} if p.values is None else {"values": p.values})}

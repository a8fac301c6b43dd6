"""`logger.experiment` as user code knows it from MLflow, TensorBoard and wandb, on the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hpcexp.errors import RunError
from hpcexp.media import encode
from hpcexp.media.recorder import Content, Recorder, say_once

_REFUSED = {
    "add_graph": "the plan names the model",
    "add_embedding": "log the points with hpcexp.log_table",
    "add_mesh": "log it with hpcexp.log_file",
    "add_pr_curve": "log its picture with hpcexp.log_figure",
    "add_video": "log it with hpcexp.log_file",
    "add_hparams": "configure them: hpcexp records the configuration",
    "add_custom_scalars": "MLflow's charts are arranged on its page",
    "log_model": "hpcexp stores the best weights itself",
    "log_video": "log it with hpcexp.log_file",
    "watch": "log gradients with hpcexp.log_histogram",
    "use_artifact": "name the file in the configuration",
}
"""Words of other loggers that have no meaning here → what to do instead."""


class Experiment:
    """The one run that this job is. MLflow's words take its `run_id` first, or leave it out."""

    def __init__(self, recorder: Recorder, run_id: str) -> None:
        self._recorder, self.run_id = recorder, run_id

    def __getattr__(self, name: str) -> NoReturn:
        refuse(name, "logger.experiment", self)

    # MLflow's client

    def log_metric(self, *args: Any, **kwargs: Any) -> None:
        """One value: `(key, value, step)`, or `(run_id, key, value, timestamp, step)`."""
        is_client = "run_id" in kwargs or (len(args) > 0 and args[0] == self.run_id)
        names = ("key", "value", "timestamp", "step") if is_client else ("key", "value", "step", "timestamp")
        given = self._given("log_metric", names, args, kwargs)
        self._recorder.metrics({given["key"]: float(given["value"])}, given.get("step"), given.get("timestamp"))

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Values by name."""
        given = self._given("log_metrics", ("metrics", "step"), args, kwargs)
        self._recorder.metrics({key: float(value) for key, value in given["metrics"].items()}, given.get("step"))

    def log_param(self, *args: Any, **kwargs: Any) -> None:
        """A parameter of the run, beside those of its configuration."""
        given = self._given("log_param", ("key", "value"), args, kwargs)
        self._note_param(given["key"], given["value"])

    def log_params(self, *args: Any, **kwargs: Any) -> None:
        """Parameters by name."""
        for key, value in self._given("log_params", ("params",), args, kwargs)["params"].items():
            self._note_param(key, value)

    def set_tag(self, *args: Any, **kwargs: Any) -> None:
        """A tag of the run."""
        given = self._given("set_tag", ("key", "value"), args, kwargs)
        self._recorder.note("tag", str(given["key"]), str(given["value"]))

    def set_tags(self, *args: Any, **kwargs: Any) -> None:
        """Tags by name."""
        for key, value in self._given("set_tags", ("tags",), args, kwargs)["tags"].items():
            self._recorder.note("tag", str(key), str(value))

    def log_batch(self, *args: Any, **kwargs: Any) -> None:
        """MLflow's own metrics, parameters and tags."""
        given = self._given("log_batch", ("metrics", "params", "tags"), args, kwargs)
        for metric in given.get("metrics", ()):
            self._recorder.metrics({metric.key: metric.value}, metric.step, metric.timestamp)
        for param in given.get("params", ()):
            self._note_param(param.key, param.value)
        for tag in given.get("tags", ()):
            self._recorder.note("tag", tag.key, tag.value)

    def log_text(self, *args: Any, **kwargs: Any) -> None:
        """A text under a path among the artifacts."""
        given = self._given("log_text", ("text", "artifact_file"), args, kwargs)
        self._recorder.artifact(given["artifact_file"], str(given["text"]).encode())

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """A mapping or list, as JSON; as YAML where the path says that."""
        given = self._given("log_dict", ("dictionary", "artifact_file"), args, kwargs)
        path, text = given["artifact_file"], encode.document(given["dictionary"])
        if path.endswith((".yaml", ".yml")):
            import yaml

            text = yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
        self._recorder.artifact(path, text.encode())

    def log_figure(self, *args: Any, **kwargs: Any) -> None:
        """A figure under a path among the artifacts."""
        given = self._given("log_figure", ("figure", "artifact_file", "save_kwargs"), args, kwargs)
        suffix = Path(given["artifact_file"]).suffix
        content, *_ = encode.figures(given["artifact_file"], given["figure"], suffix if suffix != ".html" else None)
        self._recorder.artifact(given["artifact_file"], content.data)

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """A picture under a path among the artifacts, or by `key` and `step`."""
        names = ("image", "artifact_file", "key", "step", "timestamp", "synchronous")
        given = self._given("log_image", names, args, kwargs)
        name = given.get("artifact_file") or given.get("key")
        if name is None:
            raise TypeError("log_image takes an artifact_file, or a key and a step.")
        contents = list(encode.images(name, given["image"]))
        if given.get("artifact_file") is None:
            self._recorder.put("image", name, contents, given.get("step"))
        else:
            self._recorder.artifact(name, _converted(contents[0], Path(name).suffix))

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Rows more of a table under a path among the artifacts."""
        given = self._given("log_table", ("data", "artifact_file"), args, kwargs)
        self._recorder.put("rows", str(given["artifact_file"]), [encode.rows(given["artifact_file"], given["data"])])

    def log_artifact(self, *args: Any, **kwargs: Any) -> None:
        """A file, or a folder, below the path `artifact_path` among the artifacts."""
        given = self._given("log_artifact", ("local_path", "artifact_path"), args, kwargs)
        self._recorder.artifact_tree(Path(given["local_path"]), given.get("artifact_path"), is_named=True)

    def log_artifacts(self, *args: Any, **kwargs: Any) -> None:
        """What a folder has."""
        given = self._given("log_artifacts", ("local_dir", "artifact_path"), args, kwargs)
        self._recorder.artifact_tree(Path(given["local_dir"]), given.get("artifact_path"), is_named=False)

    # TensorBoard's writer

    def add_scalar(
        self, tag: str, scalar_value: Any, global_step: int | None = None, walltime: float | None = None, **kwargs: Any
    ) -> None:
        """One value."""
        self._recorder.metrics({tag: float(scalar_value)}, global_step, _ms(walltime))

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: int | None = None,
        walltime: float | None = None,
    ) -> None:
        """Values below one name."""
        values = {f"{main_tag}/{tag}": float(value) for tag, value in tag_scalar_dict.items()}
        self._recorder.metrics(values, global_step, _ms(walltime))

    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """A picture."""
        layout = None if hasattr(img_tensor, "mode") else dataformats
        self._recorder.put("image", tag, list(encode.images(tag, img_tensor, layout)), global_step)

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Pictures."""
        self.add_image(tag, img_tensor, global_step, walltime, dataformats)

    def add_figure(
        self, tag: str, figure: Any, global_step: int | None = None, close: bool = True, walltime: float | None = None
    ) -> None:
        """A figure, or several; closed afterwards."""
        self._recorder.put("figure", tag, list(encode.figures(tag, figure)), global_step)
        if close:
            import matplotlib.pyplot as plt

            for each in figure if isinstance(figure, list) else [figure]:
                plt.close(each)

    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: int | None = None,
        bins: Any = 64,
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """How values are spread."""
        kept = 64 if bins == "tensorflow" else bins
        self._recorder.put("histogram", tag, [encode.histogram(tag, values, kept)], global_step)

    def add_text(
        self, tag: str, text_string: str, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        """A text."""
        self._recorder.put("text", tag, [Content(text_string.encode(), ".txt")], global_step)

    def add_audio(
        self,
        tag: str,
        snd_tensor: Any,
        global_step: int | None = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        """Sound."""
        self._recorder.put("audio", tag, [encode.audio(tag, snd_tensor, sample_rate)], global_step)

    def flush(self) -> None:
        """Have everything on the disk."""
        self._recorder.sync()

    def close(self) -> None:
        """Nothing: the run ends when training does."""

    # wandb's run

    def log(self, data: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Numbers as metrics; pictures, figures, texts and tables by what they are."""
        numbers = {}
        for name, value in data.items():
            if isinstance(value, int | float) or getattr(value, "ndim", None) == 0:
                numbers[name] = float(value)
            elif isinstance(value, str):
                self._recorder.put("text", name, [Content(value.encode(), ".txt")], step)
            elif hasattr(value, "savefig") or (hasattr(value, "to_html") and hasattr(value, "layout")):
                self._recorder.put("figure", name, list(encode.figures(name, value)), step)
            elif isinstance(value, Mapping) or hasattr(value, "columns"):
                self._recorder.put("table", name, [encode.table(name, value)], step)
            else:
                self._recorder.put("image", name, list(encode.images(name, value)), step)
        self._recorder.metrics(numbers, step)

    def _note_param(self, key: Any, value: Any) -> None:
        kept = self._recorder.note("param", str(key), str(value))
        if kept != str(value):
            say_once(f"the parameter {key} is {kept}, as it was logged first, and not {value}")

    def _given(
        self, word: str, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments by name, without the run's id; RunError for the id of another run."""
        given = dict(kwargs)
        run_id = given.pop("run_id", self.run_id)
        if args and (args[0] == self.run_id or len(args) > len(names)):
            run_id, args = args[0], args[1:]
        if run_id != self.run_id:
            raise RunError(
                f"logger.experiment.{word}: a job logs to its own run, and {run_id!r} is the id of another.\n"
                "Fix: leave the run_id out, or use logger.run_id."
            )
        return {**dict(zip(names, args, strict=False)), **given}


def refuse(name: str, what: str, owner: object) -> NoReturn:
    """AttributeError for a word that `owner`, which messages call `what`, does not have."""
    if name.startswith("_"):
        raise AttributeError(name)
    has = sorted(word for word in dir(type(owner)) if word.startswith(("log", "add_", "set_")))
    fix = f"\nFix: {_REFUSED[name]}." if name in _REFUSED else ""
    raise AttributeError(f"{what}.{name}: hpcexp's logger does not have it.{fix}\nIt has: {', '.join(has)}.")


def _converted(content: Content, suffix: str) -> bytes:
    """A picture in the format that its path says."""
    if suffix.lower() in ("", ".png"):
        return content.data
    from io import BytesIO

    from PIL import Image

    picture, made = Image.open(BytesIO(content.data)), BytesIO()
    kind = Image.registered_extensions().get(suffix.lower())
    if kind is None:
        raise ValueError(f"log_image: {suffix} is no format of pictures.")
    (picture.convert("RGB") if kind == "JPEG" else picture).save(made, format=kind)
    return made.getvalue()


def _ms(walltime: float | None) -> int | None:
    return None if walltime is None else round(walltime * 1000)

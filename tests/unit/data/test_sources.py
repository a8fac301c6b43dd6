"""Data sources: facts without torch, the same splits everywhere, problems named before anything starts."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from pictures import draw
from PIL import Image
from torch.utils.data import DataLoader

from hpcexp.data.digits import Digits
from hpcexp.data.images_folder import ImagesFolder
from hpcexp.data.source import SPLITS, Source, Tensors, as_tensors
from hpcexp.data.synthetic import Synthetic
from hpcexp.data_spec import Values
from hpcexp.errors import DataError

CONF = Path(__file__).parents[3] / "conf" / "data"


def synthetic(**changes: object) -> Synthetic:
    """A small data set of features, with some arguments changed."""
    arguments: dict[str, object] = {"num_train": 600, "num_val": 60, "num_test": 60, "input_shape": [16]}
    return Synthetic(**{**arguments, "num_classes": 4, "noise": 0.5, **changes})  # type: ignore[arg-type]


def test_planning_side_imports_neither_torch_nor_numpy_nor_pillow(flat: Path) -> None:
    """Facts, problems and sizes of every source are there without them."""
    code = f"""
import sys
from hpcexp.data.digits import Digits
from hpcexp.data.images_folder import ImagesFolder
from hpcexp.data.synthetic import Synthetic
for source in (Digits(), ImagesFolder({str(flat)!r}, 8), Synthetic(9, 9, 9, [4], 3)):
    assert source.problems() == [], source.problems()
    assert source.facts().num_train and source.resident_bytes()
sys.exit(' '.join({{'torch', 'numpy', 'PIL'}} & sys.modules.keys()) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_data_set_says_its_target_and_batch(path: Path) -> None:
    """A data config is complete but for what only the user knows, and is headed by how to use it."""
    text = path.read_text()
    config = yaml.safe_load(text)
    assert config["_target_"].startswith("hpcexp.data.")
    assert config["global_batch_size"] > 0
    assert {"root"} >= {key for key, value in config.items() if value == "???"}
    assert "# Use:" in text
    assert "# Needs:" in text


def sources(flat: Path, split: Path) -> list[Source]:
    """One of each kind."""
    folders: list[Source] = [ImagesFolder(str(flat), 8), ImagesFolder(str(split), (6, 8), channels=1)]
    return [Digits(), synthetic(), synthetic(num_classes=None, input_shape=(2, 3)), *folders]


def test_facts_say_what_is_loaded(flat: Path, split: Path) -> None:
    """Counts, shapes, types and memory are as announced, for every source and split."""
    for source in sources(flat, split):
        facts = source.facts()
        total = 0
        for name, count in zip(SPLITS, (facts.num_train, facts.num_val, facts.num_test), strict=True):
            loaded = as_tensors(source.load(name))
            assert (count, *next(iter(facts.inputs.values())).shape) == loaded.inputs.shape
            assert torch.float32 == loaded.inputs.dtype
            expected = ((count, 1), torch.float32) if isinstance(facts.targets, Values) else ((count,), torch.int64)
            assert expected == (tuple(loaded.targets.shape), loaded.targets.dtype)
            total += loaded.inputs.nbytes + loaded.targets.nbytes
        assert source.resident_bytes() == total


def test_loading_twice_gives_the_same_samples(flat: Path, split: Path) -> None:
    """No source depends on global random state."""
    for one, other in zip(sources(flat, split), sources(flat, split), strict=True):
        assert one.facts() == other.facts()
        for name in SPLITS:
            first, second = as_tensors(one.load(name)), as_tensors(other.load(name))
            assert torch.equal(first.inputs, second.inputs)
            assert torch.equal(first.targets, second.targets)


def test_digits_are_those_of_scikit_learn() -> None:
    """All splits together are the published data, pixel for pixel."""
    published = pytest.importorskip("sklearn.datasets").load_digits()
    source = Digits()
    for name in SPLITS:
        loaded, indices = source.load(name), source.indices[name]
        pixels = torch.from_numpy(published.images[indices]).float()[:, None]
        assert torch.allclose(pixels, loaded.inputs * 6.0 + 4.9, atol=1e-5)
        assert torch.equal(torch.from_numpy(published.target[indices]), loaded.targets)
    assert list(range(1797)) == sorted(index for indices in source.indices.values() for index in indices)


def test_digits_are_split_by_class() -> None:
    """Every class has a fifth of its samples in the test and a tenth in the validation set."""
    loaded = {name: Digits().load(name).targets.bincount() for name in SPLITS}
    classes = sum(loaded.values(), torch.zeros(10, dtype=torch.int64))
    assert torch.equal((classes * 0.2).round().long(), loaded["test"])
    assert torch.equal((classes * 0.1).round().long(), loaded["val"])


def test_digits_test_set_is_fixed() -> None:
    """Results stay comparable: neither a version nor the share for validation changes the test set."""
    assert [3, 25, 35, 40, 46] == Digits().indices["test"][:5]
    assert Digits(val_fraction=0.3).indices["test"] == Digits().indices["test"]
    assert Digits(val_fraction=0.3).facts().fingerprint != Digits().facts().fingerprint


@pytest.mark.parametrize("fraction", [0.0, 0.8, 1.5])
def test_digits_without_training_or_validation_set_are_a_problem(fraction: float) -> None:
    """The argument is named as it is typed."""
    (problem,) = Digits(fraction).problems()
    assert problem.startswith(f"data.val_fraction={fraction} must be")
    with pytest.raises(DataError, match="val_fraction"):
        Digits(fraction).facts()


def test_digit_of_the_data_set_as_a_picture_is_read_as_it_was(tmp_path: Path) -> None:
    """An 8×8 picture of a test sample is that sample to a pixel's rounding."""
    expected = Digits().load("test").inputs[7]
    grey = ((expected * 6.0 + 4.9) * 255 / 16).round().to(torch.uint8)
    Image.frombytes("L", (8, 8), bytes(grey.flatten().tolist())).save(tmp_path / "digit.png")
    assert torch.allclose(expected, Digits().read(tmp_path / "digit.png"), atol=0.02)


@pytest.mark.parametrize(("ink", "ground"), [(255, 0), (20, 240)])
def test_large_drawing_is_read_as_the_data_set_shows_digits(tmp_path: Path, ink: int, ground: int) -> None:
    """Bright or dark ink, anywhere on the sheet: cropped, centred, bright."""
    sheet = Image.new("L", (300, 200), ground)
    sheet.paste(ink, (200, 20, 220, 180))
    sheet.save(tmp_path / "one.png")
    pixels = Digits().read(tmp_path / "one.png") * 6.0 + 4.9
    expected = torch.zeros(1, 8, 8)
    expected[:, :, 3:5] = 8.0
    assert torch.allclose(expected, pixels, atol=0.1)


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    """Missing, a folder, not a picture, nothing drawn: each says which file and why."""
    (tmp_path / "text.png").write_text("no picture")
    draw(tmp_path / "blank.png")
    for name, reason in {
        "none.png": "There is no file",
        ".": "is a directory",
        "text.png": "cannot be read as a picture",
        "blank.png": "shows no digit",
    }.items():
        with pytest.raises(DataError, match=reason):
            Digits().read(tmp_path / name)


def test_folder_without_splits_is_split_by_class(flat: Path) -> None:
    """Each class gives its share to each split, and no picture is in two."""
    source = ImagesFolder(str(flat), 8, val_fraction=0.2, test_fraction=0.1)
    facts = source.facts()
    assert (42, 12, 6) == (facts.num_train, facts.num_val, facts.num_test)
    assert ("blue", "green", "red") == facts.class_names
    assert [14, 14, 14] == as_tensors(source.load("train")).targets.bincount().tolist()
    assert 60 == len({file.path for files in source.splits.values() for file in files})


def test_split_depends_on_names_below_the_root_only(flat: Path, tmp_path: Path) -> None:
    """A copy elsewhere has the same split and fingerprint."""
    shutil.copytree(flat, tmp_path / "elsewhere" / "copy")
    copy = ImagesFolder(str(tmp_path / "elsewhere" / "copy"), 8)
    assert ImagesFolder(str(flat), 8).splits == copy.splits
    assert ImagesFolder(str(flat), 8).facts() == copy.facts()


def test_fingerprint_changes_with_files_and_with_how_they_are_read(flat: Path) -> None:
    """A new file, another size of a file, another size of the input: other data."""
    seen = {ImagesFolder(str(flat), 8).facts().fingerprint, ImagesFolder(str(flat), 9).facts().fingerprint}
    draw(flat / "red" / "00.png", size=(200, 100))
    seen.add(ImagesFolder(str(flat), 8).facts().fingerprint)
    draw(flat / "red" / "new.png")
    seen.add(ImagesFolder(str(flat), 8).facts().fingerprint)
    assert 4 == len(seen)


def test_folders_of_splits_are_used(split: Path) -> None:
    """With folders train and val the fractions are not used; test may be missing."""
    facts = ImagesFolder(str(split), 8).facts()
    assert (6, 6, 6) == (facts.num_train, facts.num_val, facts.num_test)
    shutil.rmtree(split / "test")
    without_test = ImagesFolder(str(split), 8)
    assert (0, 0) == (without_test.facts().num_test, len(as_tensors(without_test.load("test"))))


def test_pictures_are_cropped_about_the_centre_and_normalised(tmp_path: Path) -> None:
    """Sides of a wide picture are cut, 0–255 becomes (0–1 - mean) / std, channel by channel."""
    wide = Image.new("RGB", (300, 100), (0, 0, 0))
    wide.paste((255, 0, 51), (40, 0, 260, 100))
    wide.save(tmp_path / "wide.png")
    read = ImagesFolder(str(tmp_path), 4, mean=[0.5, 0.0, 0.2], std=[0.5, 1.0, 0.1]).read(tmp_path / "wide.png")
    assert torch.allclose(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 4, 4), read, atol=1e-6)


def test_all_kinds_of_pictures_become_the_channels_asked_for(tmp_path: Path) -> None:
    """Palette, grey, transparent and CMYK files are read in grey and in colour."""
    for mode, suffix in {"P": "gif", "L": "png", "RGBA": "png", "CMYK": "jpg", "1": "bmp"}.items():
        path = tmp_path / f"{mode}.{suffix}"
        Image.new(mode, (9, 9)).save(path)
        for channels in (1, 3):
            assert (channels, 5, 5) == ImagesFolder(str(tmp_path), 5, channels).read(path).shape


def test_pictures_are_read_by_workers(split: Path) -> None:
    """Two processes give the same batches as none."""
    pictures = ImagesFolder(str(split), 8).load("train")
    batches = [list(DataLoader(pictures, batch_size=4, num_workers=n)) for n in (0, 2)]  # type: ignore[arg-type]
    for (inputs, targets), (same_inputs, same_targets) in zip(*batches, strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)


def test_damaged_picture_is_named_when_it_is_read(split: Path) -> None:
    """Half a file passes the listing; reading it says which it was."""
    damaged = split / "train" / "red" / "a.PNG"
    draw(damaged, size=(500, 500))
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/red/a\.PNG cannot be read as a picture"):
        as_tensors(ImagesFolder(str(split), 8).load("train"))


def remove(*folders: Path) -> int:
    """Delete folders with all that is in them; says how many."""
    for folder in folders:
        shutil.rmtree(folder)
    return len(folders)


PROBLEMS: list[tuple[Callable[[Path], object], str]] = [
    (lambda split: remove(split / "val" / "red"), "has no pictures for val of the classes red"),
    (lambda split: draw(split / "test" / "pink" / "a.png"), "has no pictures for train of the classes pink"),
    (lambda split: (split / "train" / "red" / "a.PNG").write_bytes(b""), "1 pictures that are empty files"),
    (lambda split: remove(*(split / part for part in SPLITS)), "has 0 folders of pictures"),
    (
        lambda split: (split / "val").rename(split / "valid"),
        "has a folder train but none named val (did you mean 'valid'?)",
    ),
]


@pytest.mark.parametrize(("damage", "words"), PROBLEMS)
def test_problem_of_folders_is_named_before_anything_is_read(
    split: Path, damage: Callable[[Path], object], words: str
) -> None:
    """The listing alone shows it, and `facts` refuses with the same words."""
    damage(split)
    problems = ImagesFolder(str(split), 8).problems()
    assert any(words in problem and f"data.root={split}" in problem for problem in problems)
    assert all("Fix: " in problem for problem in problems)
    with pytest.raises(DataError) as caught:
        ImagesFolder(str(split), 8).facts()
    assert words in str(caught.value)


def test_missing_root_is_named_with_a_near_name(flat: Path) -> None:
    """A misspelt folder, here or further up the path."""
    assert ["did you mean 'flat'?" in p for p in ImagesFolder(str(flat.with_name("flatt")), 8).problems()] == [True]
    (problem,) = ImagesFolder(str(flat.parent / "fla" / "red"), 8).problems()
    assert f"there is no 'fla' in {flat.parent}; did you mean 'flat'?" in problem
    (problem,) = ImagesFolder(str(draw(flat / "file.png")), 8).problems()
    assert "is a file" in problem


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 8, "channels": 4}, "data.channels=4 must be 1 (grey) or 3 (colour)"),
        ({"size": 0}, "data.size=0×0 must be at least 1 pixel"),
        ({"size": 8, "mean": [0.5, 0.5]}, "data.mean has 2 values, and pictures have data.channels=3"),
        ({"size": 8, "std": 0.0}, "must be above 0"),
        ({"size": 8, "val_fraction": -0.1}, "data.val_fraction=-0.1 is no share"),
        ({"size": 8, "val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"size": 8, "val_fraction": 0.0}, "has no pictures for val"),
    ],
)
def test_arguments_that_cannot_be_are_named(flat: Path, arguments: dict[str, float], words: str) -> None:
    """As they are typed, before a picture is read."""
    problems = ImagesFolder(str(flat), **arguments).problems()  # type: ignore[arg-type]
    assert [True] == [words in problem for problem in problems]


def test_synthetic_classes_can_be_learned() -> None:
    """The nearest mean of the training samples of a class tells the test samples apart."""
    train, test = synthetic().load("train"), synthetic().load("test")
    means = torch.stack([train.inputs[train.targets == label].mean(0) for label in range(4)])
    found = torch.cdist(test.inputs, means).argmin(1)
    assert (found == test.targets).float().mean() > 0.95
    assert math.isclose(1.0, train.inputs.std().item(), abs_tol=0.15)


def test_synthetic_regression_can_be_learned() -> None:
    """A line fitted to the training samples explains most of the test targets."""
    source = synthetic(num_classes=None, noise=0.1)
    train, test = source.load("train"), source.load("test")
    slope = torch.linalg.lstsq(train.inputs, train.targets).solution
    assert (test.inputs @ slope - test.targets).var() < 0.3 * test.targets.var()


def test_synthetic_splits_share_no_samples_and_seeds_differ() -> None:
    """Validation is no copy of training, and another seed is another data set."""
    assert not torch.equal(synthetic().load("val").inputs, synthetic().load("test").inputs)
    assert not torch.equal(synthetic().load("val").inputs, synthetic(seed=1).load("val").inputs)
    assert synthetic().facts().fingerprint != synthetic(seed=1).facts().fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_train": 0}, "data.num_train=0 must be at least 1"),
        ({"input_shape": []}, "data.input_shape=[] is no shape"),
        ({"input_shape": [3, 0]}, "data.input_shape=[3,0] is no shape"),
        ({"num_classes": 1}, "data.num_classes=1 leaves nothing to tell apart"),
        ({"noise": -1.0}, "data.noise=-1.0 is a standard deviation"),
    ],
)
def test_impossible_synthetic_data_is_named(changes: dict[str, object], words: str) -> None:
    """As it is typed, before anything is made."""
    (problem,) = synthetic(**changes).problems()
    assert words in problem
    with pytest.raises(DataError, match="Fix: "):
        synthetic(**changes).facts()


def test_synthetic_data_has_no_files_to_predict(tmp_path: Path) -> None:
    """It says so instead of guessing a format."""
    with pytest.raises(DataError, match="made-up data"):
        synthetic().read(tmp_path / "x.txt")


def test_targets_may_be_plain_numbers() -> None:
    """A user's samples need not wrap their class numbers in tensors."""
    samples = [(torch.full((2,), float(label)), label) for label in range(3)]
    assert [0, 1, 2] == as_tensors(samples).targets.tolist()  # type: ignore[arg-type]


def test_tensors_of_tensors_are_themselves() -> None:
    """A split in memory is not copied."""
    loaded = Tensors(torch.zeros(3, 2), torch.arange(3))
    assert loaded is as_tensors(loaded)

"""Models: shapes in and out, exact counts, and what they say when sizes do not fit."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hpcexp.models.cnn import CNN
from hpcexp.models.mlp import MLP
from hpcexp.models.resnet import ResNet
from hpcexp.models.sizes import num_params
from hpcexp.models.vit import ViT

CONF = Path(__file__).parents[3] / "conf" / "model"
IMAGES = [(1, 8, 8), (3, 32, 32), (4, 24, 16)]

SIZED: list[tuple[str, dict[str, Any]]] = [
    ("hpcexp.models.mlp.MLP", {"hidden": [32, 16], "dropout": 0.1, "activation": "gelu"}),
    ("hpcexp.models.mlp.MLP", {"hidden": []}),
    ("hpcexp.models.cnn.CNN", {"channels": [4, 8, 8], "convs_per_stage": 2, "grid": 3, "dropout": 0.1}),
    ("hpcexp.models.cnn.CNN", {"channels": [4, 16], "convs_per_stage": 1, "grid": 4, "norm": "group"}),
    ("hpcexp.models.resnet.ResNet", {"depths": [2, 1, 2], "width": 4, "stem": "cifar"}),
    ("hpcexp.models.resnet.ResNet", {"depths": [1, 1], "width": 8, "stem": "imagenet", "dropout": 0.2}),
    ("hpcexp.models.vit.ViT", {"patch_size": 4, "dim": 24, "depth": 2, "heads": 3, "mlp_ratio": 2.5, "dropout": 0.1}),
]


def build(target: str, **arguments: Any) -> torch.nn.Module:
    """The model that a config names."""
    module, name = target.rsplit(".", 1)
    model: torch.nn.Module = getattr(importlib.import_module(module), name)(**arguments)
    return model


def count(model: torch.nn.Module) -> int:
    """The parameters that the model really has."""
    return sum(p.numel() for p in model.parameters())


def packaged() -> list[tuple[str, dict[str, Any]]]:
    """Every model in conf/, as target and arguments."""
    configs = [yaml.safe_load(path.read_text()) for path in sorted(CONF.glob("*.yaml"))]
    return [(config.pop("_target_"), config) for config in configs]


@pytest.mark.parametrize("in_shape", IMAGES)
@pytest.mark.parametrize(("target", "arguments"), SIZED)
def test_count_without_torch_is_the_real_count(
    target: str, arguments: dict[str, Any], in_shape: tuple[int, ...]
) -> None:
    """What planning says of a model's size is what the job builds."""
    model = build(target, in_shape=in_shape, num_classes=7, **arguments)
    assert count(model) == num_params(target, in_shape=in_shape, num_classes=7, **arguments)


@pytest.mark.parametrize(("target", "arguments"), packaged())
def test_packaged_model_trains_on_tiny_images_and_is_counted(target: str, arguments: dict[str, Any]) -> None:
    """Each file in conf/model gives all that the count needs, and every weight of its model gets a gradient."""
    model = build(target, in_shape=(1, 8, 8), num_classes=10, **arguments)
    assert count(model) == num_params(target, in_shape=(1, 8, 8), num_classes=10, **arguments)
    for _ in range(2):  # the second step moves what zero-initialised layers held back in the first
        loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.arange(4))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.sub_(grad, alpha=0.1)
    assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("in_shape", IMAGES)
@pytest.mark.parametrize(("target", "arguments"), SIZED)
def test_output_is_one_row_of_logits_per_sample(
    target: str, arguments: dict[str, Any], in_shape: tuple[int, ...]
) -> None:
    """Any channels and sizes go in, `(B, num_classes)` comes out."""
    model = build(target, in_shape=in_shape, num_classes=7, **arguments).eval()
    assert (2, 7) == model(torch.randn(2, *in_shape)).shape


def test_mlp_takes_inputs_of_any_shape() -> None:
    """Features and volumes are flattened as images are."""
    assert (5, 3) == MLP((13,), 3, hidden=[8])(torch.randn(5, 13)).shape
    assert (5, 3) == MLP((2, 3, 4, 5), 3, hidden=[8])(torch.randn(5, 2, 3, 4, 5)).shape


def test_cnn_takes_images_of_one_pixel() -> None:
    """Halving stops at one pixel."""
    assert (2, 3) == CNN((1, 1, 1), 3, channels=[4, 4, 4]).eval()(torch.randn(2, 1, 1, 1)).shape


def test_resnet_with_the_arguments_of_the_header_is_resnet_18() -> None:
    """11,689,512 parameters, as torchvision's documentation gives for ImageNet."""
    arguments = {"depths": [2, 2, 2, 2], "width": 64, "stem": "imagenet"}
    assert 11_689_512 == num_params(
        "hpcexp.models.resnet.ResNet", in_shape=(3, 224, 224), num_classes=1000, **arguments
    )


def test_imagenet_stem_quarters_the_image() -> None:
    """The CIFAR stem keeps its size."""
    image = torch.randn(1, 3, 32, 32)
    assert (1, 4, 8, 8) == ResNet((3, 32, 32), 2, [1], 4, "imagenet").stem(image).shape
    assert (1, 4, 32, 32) == ResNet((3, 32, 32), 2, [1], 4, "cifar").stem(image).shape


def test_vit_sees_where_a_patch_is() -> None:
    """Swapping two patches changes the features: positions are learned, not ignored."""
    torch.manual_seed(0)
    model = ViT((1, 8, 8), 3, patch_size=4, dim=16, depth=1, heads=2).eval()
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(1, 1, 8, 8)
    swapped = torch.cat([image[:, :, 4:], image[:, :, :4]], dim=2)
    assert not torch.allclose(model(image), model(swapped), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "in_shape", "arguments", "words"),
    [
        (ViT, (3, 30, 32), {"patch_size": 4}, "patch_size=4 does not divide images of 30×32 pixels"),
        (ViT, (3, 32, 32), {"dim": 10, "heads": 3}, "dim=10 does not divide over heads=3"),
        (CNN, (64,), {}, "CNN needs images"),
        (ResNet, (64,), {}, "ResNet needs images"),
        (ResNet, (3, 32, 32), {"stem": "cifra"}, "stem='cifra' is none of cifar, imagenet"),
        (MLP, (8,), {"activation": "rleu"}, "activation='rleu' is none of relu"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    model: type[torch.nn.Module], in_shape: tuple[int, ...], arguments: dict[str, Any], words: str
) -> None:
    """The message has the argument, its value and what it should fit."""
    with pytest.raises(ValueError, match=words):
        model(in_shape, 10, **arguments)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("their.own.Model", {"hidden": [8]}),
        ("hpcexp.models.mlp.MLP", {}),
        ("hpcexp.models.mlp.MLP", {"hidden": "many"}),
        ("hpcexp.models.vit.ViT", {"patch_size": 0, "dim": 8, "depth": 1, "mlp_ratio": 4}),
    ],
)
def test_count_is_none_where_it_cannot_be_known(target: str, arguments: dict[str, Any]) -> None:
    """Others' models, missing arguments and impossible values do not stop planning."""
    assert num_params(target, in_shape=(1, 8, 8), num_classes=10, **arguments) is None


def test_counting_does_not_import_torch() -> None:
    """Planning counts parameters in milliseconds."""
    code = "import sys, hpcexp.models.sizes; sys.exit('torch' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode

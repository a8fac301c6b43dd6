"""Augmentation: what each transform does to a batch, and by which random numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hpcexp.data.augment import Compose, RandomAffine, RandomFlip, RandomShift, draws_of


def images() -> torch.Tensor:
    """A batch of random images."""
    return torch.randn(64, 2, 6, 5, generator=torch.Generator().manual_seed(0))


def test_shift_moves_each_image_and_repeats_its_border() -> None:
    """Every result is one of the nine shifts by up to a pixel, the same in all channels; all of them come up."""
    torch.manual_seed(0)
    before = images()
    after = RandomShift(1)(before)
    padded = torch.nn.functional.pad(before, (1, 1, 1, 1), mode="replicate")
    shifts = [padded[:, :, row : row + 6, column : column + 5] for row in range(3) for column in range(3)]
    matches = torch.stack([(after == shifted).flatten(1).all(1) for shifted in shifts])
    assert [1] * 64 == matches.sum(0).tolist()
    assert 9 == matches.any(1).sum()


def test_flip_mirrors_about_half_of_the_images() -> None:
    """The others stay as they are."""
    torch.manual_seed(0)
    before = images()
    after = RandomFlip()(before)
    kept, mirrored = ((after == other).flatten(1).all(1) for other in (before, before.flip(-1)))
    assert [True] * 64 == (kept ^ mirrored).tolist()
    assert 20 < mirrored.sum() < 44


def test_affine_without_amounts_changes_nothing() -> None:
    """Zero degrees, scale and shift are the identity."""
    assert torch.allclose(images(), RandomAffine()(images()), atol=1e-5)


def test_affine_moves_by_up_to_its_share_of_a_side() -> None:
    """A bright column in the middle stays within `shift` of it, and gets to both sides."""
    torch.manual_seed(0)
    image = torch.zeros(200, 1, 9, 9)
    image[:, :, :, 4] = 1.0
    profile = RandomAffine(shift=2 / 9)(image).mean(dim=(1, 2))
    centre = (profile * torch.arange(9)).sum(1) / profile.sum(1)
    assert 2.0 <= centre.min() < 3.0
    assert 5.0 < centre.max() <= 6.0


def test_the_numbers_of_a_step_are_those_of_its_samples() -> None:
    """Of the whole global batch, so that any part of it is changed as it would be in the whole."""
    changes, x = Compose([RandomFlip(), RandomShift(2), RandomAffine(10, 0.1, 0.1)]), images()
    draws = draws_of(seed=1, step=3, num_draws=changes.num_draws, global_batch=64)
    whole = changes(x, draws)
    parts = [changes(x[i : i + 16], draws[:, i : i + 16]) for i in range(0, 64, 16)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(draws, draws_of(seed=1, step=4, num_draws=changes.num_draws, global_batch=64))
    assert not torch.equal(draws, draws_of(seed=2, step=3, num_draws=changes.num_draws, global_batch=64))


@pytest.mark.parametrize("transform", [RandomFlip(), RandomShift(2), RandomAffine(10, 0.1, 0.1)])
def test_augmentation_follows_the_global_seed(transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The same seed changes images in the same way, also composed with others; another seed in another."""
    composed = Compose([transform, RandomShift(1)])
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(composed(images()))
    assert images().shape == results[0].shape
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])

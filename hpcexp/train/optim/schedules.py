"""Learning-rate schedules whose length is `total_steps`, which the plan knows. Each scales the optimizer's own `lr`."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.0, final: float = 0.0) -> LambdaLR:
    """Linear rise over the first `warmup` share of the steps, then half a cosine down to `final` times the rate.

    Source: Loshchilov & Hutter, SGDR, 2017 (eq. 5 without restarts); the rise after Goyal et al., 2017.
    """
    return LambdaLR(optimizer, partial(_cosine, total=total_steps, rise=round(warmup * total_steps), final=final))


def constant(optimizer: Optimizer, total_steps: int | None = None, warmup: float = 0.0) -> LambdaLR:
    """The rate as it is, after a linear rise over the first `warmup` share of the steps, which alone needs a length."""
    return LambdaLR(optimizer, partial(_rising, rise=round(warmup * (total_steps or 0))))


def onecycle(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> OneCycleLR:
    """OneCycleLR of torch: the optimizer's `lr` is its highest point, reached after the `warmup` share of the steps.

    Source: Smith & Topin, Super-Convergence, 2018.
    """
    highest = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(
        optimizer,
        max_lr=highest,
        total_steps=total_steps,
        pct_start=warmup,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=_has_momentum(optimizer),
    )


def _rising(step: int, rise: int) -> float:
    return (step + 1) / (rise + 1) if step < rise else 1.0


def _cosine(step: int, total: int, rise: int, final: float) -> float:
    if step < rise:
        return _rising(step, rise)
    done = min(1.0, (step - rise) / max(1, total - rise))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def _has_momentum(optimizer: Optimizer) -> bool:
    return "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))

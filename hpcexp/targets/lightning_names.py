"""The names of `lightning`, which are those of `pytorch_lightning` and `lightning_fabric` under another root.

Both distributions hold the same code. hpcexp runs on pytorch_lightning and takes either name for it: planning reads
names through `canonical`, and in a job `hpcexp.train.runtime.lightning_alias` makes them the same modules.
"""

from __future__ import annotations

ROOT = "lightning"
PACKAGES = {f"{ROOT}.pytorch": "pytorch_lightning", f"{ROOT}.fabric": "lightning_fabric"}
EXPORTS = {
    "Trainer": "pytorch_lightning",
    "LightningDataModule": "pytorch_lightning",
    "LightningModule": "pytorch_lightning",
    "Callback": "pytorch_lightning",
    "seed_everything": "lightning_fabric",
    "Fabric": "lightning_fabric",
    "__version__": "pytorch_lightning",
}
"""What `lightning` itself exports → the package that has it."""


def canonical(name: str) -> str:
    """`lightning.pytorch.X` as `pytorch_lightning.X`, `lightning.LightningModule` likewise; other names unchanged."""
    root, _, rest = name.partition(".")
    if root != ROOT or not rest:
        return name
    first, _, more = rest.partition(".")
    if package := PACKAGES.get(f"{ROOT}.{first}"):
        return f"{package}.{more}" if more else package
    return f"{EXPORTS[first]}.{rest}" if first in EXPORTS else name

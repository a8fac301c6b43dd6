"""Names of the tags that hpcexp gives MLflow's runs, models and versions; `compare` reads them back by the same names.

Facts of a plan's lineage (`git.commit`, `code.digest`, `version.torch`, `host`) are tags of that name below `PREFIX`.
"""

from __future__ import annotations

PREFIX = "hpcexp."
AXIS = "axis."
"""Of a sweep's job: its value on the axis of that name."""
CHOICES = f"{PREFIX}choices."
"""Of a run: the option of the config group of that name."""

SIGNATURE = f"{PREFIX}signature"
RUN = f"{PREFIX}run"
RENAMED = f"{PREFIX}renamed"
"""What MLflow does not take by its name, in JSON: kind → name → the key that it has."""
TOKEN = f"{PREFIX}token"
"""By which a run is found again that was created by a process that died before it noted the run's id."""
STATE = f"{PREFIX}state"
CAUSE = f"{PREFIX}cause"
PRUNED = f"{PREFIX}pruned"
WORLD_SIZE = f"{PREFIX}world_size"
NUM_PARAMS = f"{PREFIX}num_params"
BEST_MONITOR = f"{PREFIX}best.monitor"
BEST_VALUE = f"{PREFIX}best.value"
BEST_EPOCH = f"{PREFIX}best.epoch"

SWEEP = f"{PREFIX}sweep"
SWEEP_DIR = f"{PREFIX}sweep_dir"
"""Only the run of a sweep itself has it, not those of its jobs."""
OBJECTIVES = f"{PREFIX}objectives"

SEAL = f"{PREFIX}seal"
DATA_DIGEST = f"{PREFIX}data.digest"
PATCH_SHA256 = f"{PREFIX}git.patch.sha256"
CONTINUED_FROM_STEP = f"{PREFIX}continued_from.step"
WEIGHTS_FROM = f"{PREFIX}initial_weights"
WEIGHTS_SHA256 = f"{PREFIX}initial_weights.sha256"
INITIALISED_FROM = f"{PREFIX}initialised_from"
INITIALISED_FROM_RUN = f"{PREFIX}initialised_from.run_id"

CHECKPOINT = f"{PREFIX}checkpoint"
CHECKPOINT_SHA256 = f"{PREFIX}checkpoint.sha256"
EXPORTED = f"{PREFIX}exported"

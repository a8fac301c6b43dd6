"""The peer that schedules: the trainings of `benchmarks.stock_sweep` as trials of Ray Tune, two at once.

`python -m benchmarks.ray_sweep URI JOBS`. Needs `pip install "ray[tune]"`, which hpcexp does not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.stock_sweep import Experiment, train


def main() -> None:
    """Train once for each seed; trials take the workers of those before."""
    uri, jobs, place = sys.argv[1], int(sys.argv[2]), Path.cwd()

    def trial(config: dict[str, Any]) -> None:
        directory = place / "jobs" / str(config["seed"])
        directory.mkdir(parents=True)
        train(Experiment(uri=uri, seed=config["seed"]), directory)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    found = tune.Tuner(
        trial,
        param_space={"seed": tune.grid_search(list(range(1, jobs + 1)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(place / "ray"), verbose=0),
    ).fit()
    ray.shutdown()
    if found.errors:
        raise RuntimeError(f"{len(found.errors)} trials failed; the first: {found.errors[0]}")


if __name__ == "__main__":
    main()

"""Reproducing: a run's code, configuration and data once more, trained again, and compared with the run."""

"""Reproducing: a run's code, configuration and data once more, trained again, and held against the run."""

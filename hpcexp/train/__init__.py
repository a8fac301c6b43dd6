"""Training: the Lightning module, loaders, checkpoints and callbacks of a job."""

"""Where a job's ranks run."""

"""Runs as their directories record them, without MLflow."""

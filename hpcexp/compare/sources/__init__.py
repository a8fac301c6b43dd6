"""Runs read from directories, or from MLflow."""

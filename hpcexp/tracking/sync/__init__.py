"""Run and sweep directories on their way to MLflow."""

"""What a run says, first in its directory and from there in MLflow."""

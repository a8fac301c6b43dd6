"""MLflow: the view of runs. The only importer of MLflow."""

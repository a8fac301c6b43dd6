"""The web application that `hpcexp ui` and `hpcexp serve` start: MLflow's own, behind doors of ours."""

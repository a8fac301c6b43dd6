"""MLflow's interface for one user, and its server for a group."""

"""MLflow's store, registry, addresses and views."""

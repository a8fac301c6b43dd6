"""Runs as their directories record them: state, journal, integrity, listing. No MLflow here."""

"""Runs as their directories record them: state, journal, checkpoint checksums, listing. No MLflow here."""

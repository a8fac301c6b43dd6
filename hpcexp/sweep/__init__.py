"""Several jobs from one command line."""

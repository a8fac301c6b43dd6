"""The Lightning module of packaged tasks, its metrics and losses."""

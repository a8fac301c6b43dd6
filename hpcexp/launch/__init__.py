"""Plans become processes: a job's ranks start together, are watched together and end together."""

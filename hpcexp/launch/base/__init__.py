"""What launchers, the supervisor and their callers share."""

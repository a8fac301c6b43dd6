"""The state of runs and sweeps: their own files, the process that works on them, its beat, and their launcher."""

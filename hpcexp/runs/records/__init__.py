"""The files of runs and sweeps as types, a module a subject."""

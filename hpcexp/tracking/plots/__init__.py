"""Plots of a run, drawn without matplotlib."""

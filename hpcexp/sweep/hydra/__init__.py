"""Hydra's sweepers and launchers."""

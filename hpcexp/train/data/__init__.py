"""Loaders and data modules."""

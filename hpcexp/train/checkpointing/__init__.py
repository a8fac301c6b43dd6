"""Checkpoints: written, sharded, verified, resumed from."""

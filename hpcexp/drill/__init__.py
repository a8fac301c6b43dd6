"""Drills: whether a killed and continued training ends the same to the bit, and losses are the same on more devices."""

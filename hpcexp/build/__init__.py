"""From `_target_` to objects."""

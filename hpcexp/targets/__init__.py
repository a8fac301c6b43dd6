"""What a `_target_` is and which arguments it takes, read from source code or asked of the object."""

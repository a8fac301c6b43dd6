"""Which keys there are, and a configuration with their types."""

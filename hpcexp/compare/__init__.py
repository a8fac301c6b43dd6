"""What differs between runs, beside their results."""

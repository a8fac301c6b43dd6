"""What differs between runs, beside what they came to."""

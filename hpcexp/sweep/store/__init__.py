"""The directory of a sweep."""

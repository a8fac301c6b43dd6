"""What a sweep shows: its status, a live view, its ranking."""

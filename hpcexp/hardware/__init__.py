"""What this machine has, and which part of it a job gets."""

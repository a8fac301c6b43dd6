"""One job, from its frozen plan to its final state."""

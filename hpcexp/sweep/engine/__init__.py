"""The driver of a sweep: which jobs run when, on which devices."""

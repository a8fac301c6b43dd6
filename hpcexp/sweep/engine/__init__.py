"""Running a sweep: which jobs run when, and on which devices."""

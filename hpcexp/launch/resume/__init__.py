"""Whether and from where an interrupted run resumes."""

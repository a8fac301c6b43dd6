"""Where a run comes from, written into its directory when it starts."""

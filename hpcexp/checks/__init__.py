"""Every mistake in a composed configuration, found before anything starts. Nothing here imports torch."""

"""Files: those that somebody else may have made, documents decoded with limits, and writes that are whole or absent."""

"""What user code logs beside metrics: pictures, sounds, texts, tables, files, parameters, tags."""

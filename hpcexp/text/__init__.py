"""Text for people: numbers, tables and names, and what reaches a terminal."""

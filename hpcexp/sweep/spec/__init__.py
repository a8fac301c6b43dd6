"""What a sweep asks: its file, axes and values, and what is wrong with them."""

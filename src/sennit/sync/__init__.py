"""In-process tools, usable alone."""

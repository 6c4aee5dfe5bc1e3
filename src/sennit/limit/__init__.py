"""Limits: what may enter, and how much may run."""

"""The version, in a file of its own: the build reads it without importing sennit."""

from __future__ import annotations

__version__ = "0.1.0"

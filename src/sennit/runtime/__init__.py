"""The composition root: only here a concrete store, pool or clock is chosen, and parts are started and stopped in order."""

from sennit.runtime.app import App

__all__ = ["App"]

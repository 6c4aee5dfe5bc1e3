"""The virtual clock of `sennit.sync.virtual`, under the name that tests know."""

from __future__ import annotations

from sennit.sync.virtual import EPOCH_US, VirtualClock

__all__ = ["EPOCH_US", "VirtualClock"]

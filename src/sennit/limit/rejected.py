"""Not now, as a value: a limit that says no costs no exception, and says when to come back.

    permit = breaker.try_acquire()
    if not permit:
        return "later", permit.retry_after_s

A rejection is false, a permit is true. On hot paths an exception costs several times as much (`bench/breaker.py`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sennit.model.provider import WaitReason


class Rejected(msgspec.Struct, frozen=True):
    """Nothing was taken; there is nothing to give back.

    Attributes:
        retry_after_s: when it is worth asking again, as far as is known now; it may be earlier. At least 0.
        reason: what refused it.
    """

    retry_after_s: float
    reason: WaitReason

    def __bool__(self) -> Literal[False]:
        return False

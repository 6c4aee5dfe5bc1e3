"""The locks of one process, and which lock is which.

    Mutex, RWLock, AsyncRWLock      here: between OS threads, or tasks of one loop; gone with the process
    filelocks.FileLock              between processes of one host, by a file; freed by the OS when its holder dies
    App.lock(name)                  between machines, a row in the store with a lease and a fencing token
    threading.Lock                  what to take when nobody will ask how contended it was

`lockorder` says in which order ours are taken, and finds the deadlock before it happens; `lockwaits` names one that does.
"""

from __future__ import annotations

from sennit.sync.lockorder import LockOrder
from sennit.sync.mutex import Mutex, MutexStatistics
from sennit.sync.rwlock import RWLock
from sennit.sync.rwlock_async import AsyncRWLock
from sennit.sync.rwqueue import RWLockStatistics

__all__ = ["AsyncRWLock", "LockOrder", "Mutex", "MutexStatistics", "RWLock", "RWLockStatistics"]

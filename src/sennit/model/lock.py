"""Distributed locks: who asks, who holds, and the token that tells an old holder from a new one.

    ask ─► waits in line ─► holds until `until_us` ─┬─ extend ─► holds longer
               (who came first)                     ├─ release ─► over
                                                    └─ the time comes ─► over: the next in line holds

One name, one line. A *mutex* is asked for exclusively; readers and the slots of a semaphore are asked for `shared`.
Nobody is let past the first of the line, so a writer is not starved by readers that keep coming.

Each grant has a *token*, greater than all earlier ones of its name. A holder that was frozen, or cut off, cannot know
that its time is over; whoever it writes to can, if the write carries the token and a greater one was seen.
Source: M. Kleppmann, "How to do distributed locking" (2016).
"""

from __future__ import annotations

from typing import Final

import msgspec

from sennit.errors import SettingsError

LOCK_NAME_CHARS_MAX: Final = 200

FOREIGN: Final = "redis:"
"""Begins the name in a `Fence` whose token another server gave out; the store learns such tokens from the writes."""

TTL_S_MIN: Final = 0.05
"""A shorter one would be over before the news of it has arrived."""

TTL_S_MAX: Final = 7 * 86_400.0


class Fence(msgspec.Struct, kw_only=True, frozen=True):
    """What a write carries to prove that nobody has taken over the lock it was made under.

    Attributes:
        shared: of a reader or a slot; then the store looks whether that grant is still held.
    """

    name: str
    token: int
    shared: bool = False

    @property
    def is_foreign(self) -> bool:
        """True when the store did not give the token out itself."""
        return self.name.startswith(FOREIGN)


class LockRequest(msgspec.Struct, kw_only=True, frozen=True):
    """One wish for a lock.

    Attributes:
        id: from `take_ids`.
        ttl_us: how long the grant holds unless it is extended.
        shared: together with others that are `shared`; else alone.
        n_max: with how many others at most, itself included; 0 is any number. Only with `shared`.
        wait: False is refused at once when there is no room.
        owner: who asks, for people.
    """

    id: int
    name: str
    ttl_us: int
    shared: bool = False
    n_max: int = 0
    wait: bool = True
    owner: str = ""


class LockGrant(msgspec.Struct, kw_only=True, frozen=True):
    """A lock that is held. Times are the clock of whoever gave it, µs.

    Attributes:
        token: the proof of it, and greater than that of every earlier grant of this name.
        until_us: then it is over, unless it was extended before.
    """

    name: str
    token: int
    shared: bool = False
    granted_us: int
    until_us: int
    waited_us: int = 0

    @property
    def fence(self) -> Fence:
        """What a write carries."""
        return Fence(name=self.name, token=self.token, shared=self.shared)


class LockHolder(msgspec.Struct, kw_only=True, frozen=True):
    """Somebody who holds a lock or waits for it.

    Attributes:
        token: None while it waits.
        since_us: since when it holds it, or waits for it.
        until_us: None while it waits.
    """

    id: int
    owner: str
    shared: bool
    n_max: int = 0
    token: int | None = None
    since_us: int
    until_us: int | None = None


class LockView(msgspec.Struct, kw_only=True, frozen=True):
    """One lock as people see it.

    Attributes:
        token: the newest that was given out under this name.
        holders: whose time is not over.  waiting: in the order in which they will hold it.
    """

    name: str
    token: int
    holders: tuple[LockHolder, ...] = ()
    waiting: tuple[LockHolder, ...] = ()


def fits(*, shared: bool, n_max: int, held: int, all_shared: bool) -> bool:
    """Return whether the first of a line may hold the lock beside those who do.

    Args:
        held: how many do.  all_shared: whether all of them share it.
    """
    return held == 0 or (shared and all_shared and (n_max == 0 or held < n_max))


def checked_lock_name(name: object) -> str:
    """Return `name`.

    Raises:
        SettingsError: it is not text, empty, too long, reserved, or cannot be stored.
    """
    what = ""
    if not isinstance(name, str):
        what = f"the name of a lock must be text, not {name!r}"
    elif not name:
        what = "the name of a lock is empty"
    elif len(name) > LOCK_NAME_CHARS_MAX:
        what = f"the name of a lock has {len(name)} characters, and {LOCK_NAME_CHARS_MAX} are the most"
    elif name.startswith(FOREIGN):
        what = f"the name of a lock cannot begin with {FOREIGN!r}"
    elif "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        what = f"the name of a lock, {name!r}, has a NUL or half of a surrogate pair"
    if what:
        raise SettingsError(
            what, why="it names one lock in the store, in Redis and in the CLI", fix='for example "deploy"'
        )
    return str(name)


def checked_ttl_us(ttl_s: object) -> int:
    """Return a ttl in µs.

    Raises:
        SettingsError: it is no number within bounds.
    """
    is_number = isinstance(ttl_s, (int, float)) and not isinstance(ttl_s, bool)
    if not is_number or not TTL_S_MIN <= float(ttl_s) <= TTL_S_MAX:  # type: ignore[arg-type]  # it is a number
        raise SettingsError(
            f"a lock with ttl_s={ttl_s!r} cannot be",
            why="it is how long a holder that has died, or was cut off, keeps the others waiting",
            fix=f"give a number of seconds from {TTL_S_MIN:g} to {TTL_S_MAX:,.0f}",
        )
    return round(float(ttl_s) * 1_000_000)  # type: ignore[arg-type]

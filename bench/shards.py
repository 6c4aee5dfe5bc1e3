"""Where a thread lives in a fleet of many primaries: how evenly three rules spread load, and what a new primary moves.

    python bench/shards.py            about four seconds; the same figures every time

    tenant, thread ──hash──► one of 4096 logical shards ──map──► one of a few primaries

Nothing of this is built into sennit. The page docs/explanation/very-large-fleets.md quotes the tables.

Tenants have Zipf sizes, as customers do. Threads have equal weight: a thread runs one task at a time, so that none of
them can be more than one running task, however large its owner is.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from report import drawn, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

Rule = Literal["by tenant", "by thread", "by tenant, large ones in buckets"]
RULES: Final[tuple[Rule, ...]] = ("by tenant", "by thread", "by tenant, large ones in buckets")

SHARD_BITS: Final = 12  # in the id from the first day; a map with fewer entries looks at the first bits only
SHARDS: Final = 1 << SHARD_BITS
TENANTS: Final = 100_000
THREADS: Final = 200_000  # with a task that is ready or running; threads that rest weigh nothing
ZIPF: Final = 1.1  # exponent; 1.0 to 1.2 is what sizes of customers, cities and words are usually fitted with
PRIMARIES: Final = 16
SEEDS: Final = (1, 2, 3)
MANY_THREADS: Final = 10  # a tenant with fewer is on few primaries under any rule

# A tenant has as many buckets as it takes to keep a bucket below this share of one primary's threads. It has to be small
# beside a primary, and large beside most tenants, whose threads then stay together.
BUCKET_SHARE: Final = 1 / 50


def shard_of(*names: object, bits: int = SHARD_BITS) -> int:
    """Return the logical shard of what has these names: the first bits of a hash that is the same everywhere.

    The first bits, so that a map of 256 shards becomes one of 4096 by cutting each into 16 pieces, and nothing moves.
    """
    text = "\0".join(str(name) for name in names).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> (64 - bits)


class Spread(NamedTuple):
    """How load lies under one rule; ratios are to the mean, 1.0 is even.

    `tenants_in_one_place` is the share of tenants with all their threads on one primary, of those with ten or more.
    """

    busiest_shard: float
    busiest_primary: float
    tenants_in_one_place: float
    largest_tenant_primaries: int


def tenants_of_threads(random: Random) -> list[int]:
    """Return for each thread the rank of its tenant, 0 the largest."""
    bounds = list(accumulate((rank + 1) ** -ZIPF for rank in range(TENANTS)))
    return [bisect_left(bounds, random.random() * bounds[-1]) for _ in range(THREADS)]


def primary_of(shard: int, primaries: int, shards: int = SHARDS) -> int:
    """Return the primary of a shard in a map that gives each as many, or one more."""
    return shard * primaries // shards


def spread(rule: Rule, owners: Sequence[int], seed: int) -> Spread:
    """Place every thread by `rule` and look at what lies where."""
    sizes = [0] * TENANTS
    for tenant in owners:
        sizes[tenant] += 1
    bucket_threads = BUCKET_SHARE * len(owners) / PRIMARIES
    shards, primaries = [0] * SHARDS, [0] * PRIMARIES
    places: dict[int, set[int]] = {}
    known: dict[tuple[int, int], int] = {}
    for thread, tenant in enumerate(owners):
        match rule:
            case "by tenant":
                part = 0
            case "by thread":
                part = thread
            case "by tenant, large ones in buckets":
                part = thread % (1 + int(sizes[tenant] / bucket_threads))
        shard = known.get((tenant, part))
        if shard is None:
            shard = known[tenant, part] = shard_of(seed, tenant, part)
        primary = primary_of(shard, PRIMARIES)
        shards[shard] += 1
        primaries[primary] += 1
        places.setdefault(tenant, set()).add(primary)
    many = [tenant for tenant, size in enumerate(sizes) if size >= MANY_THREADS]
    return Spread(
        busiest_shard=max(shards) * SHARDS / len(owners),
        busiest_primary=max(primaries) * PRIMARIES / len(owners),
        tenants_in_one_place=sum(len(places[tenant]) == 1 for tenant in many) / len(many),
        largest_tenant_primaries=len(places[0]),
    )


def spreads() -> dict[Rule, list[Spread]]:
    """Return the spread of each rule under each seed."""
    found: dict[Rule, list[Spread]] = {rule: [] for rule in RULES}
    for seed in SEEDS:
        owners = tenants_of_threads(Random(seed))
        for rule in RULES:
            found[rule].append(spread(rule, owners, seed))
    return found


class Growth(NamedTuple):
    """What one more primary does to a map of so many shards."""

    shards: int
    primaries: int
    busiest_primary: float
    moved: float
    moved_by_modulo: float


def grown(shards: int, primaries: int) -> Growth:
    """Add one primary: the map gives it shards of those that have most, and touches no other.

    The modulo is `shard % primaries`, what a program without a map would do.
    """
    counts = [0] * (primaries + 1)
    for shard in range(shards):
        counts[primary_of(shard, primaries, shards)] += 1
    busiest = max(counts) * primaries / shards
    moved = 0
    while (most := max(counts)) > counts[-1] + 1:
        counts[counts.index(most)] -= 1
        counts[-1] += 1
        moved += 1
    by_modulo = sum(shard % primaries != shard % (primaries + 1) for shard in range(shards))
    return Growth(shards, primaries, busiest, moved / shards, by_modulo / shards)


def balance_table() -> str:
    """Return the worst of the seeds for each rule."""
    head = [
        "threads are placed",
        "busiest shard",
        "busiest primary",
        "tenants (≥ 10 threads) on one primary",
        "primaries of the largest",
    ]
    rows = [head]
    for rule, found in spreads().items():
        rows.append(
            [
                rule,
                f"{shown(max(one.busiest_shard for one in found))} × mean",
                f"{max(one.busiest_primary for one in found):.2f} × mean",
                f"{100 * min(one.tenants_in_one_place for one in found):.1f} %",
                str(max(one.largest_tenant_primaries for one in found)),
            ]
        )
    return drawn(rows)


def growth_table() -> str:
    """Return what a map of 256 and one of 4096 shards can do."""
    rows = [["logical shards", "primaries", "busiest primary", "one more primary moves", "with a modulo instead"]]
    for shards in (256, 4096):
        for primaries in (4, 16, 100):
            one = grown(shards, primaries)
            rows.append(
                [
                    str(shards),
                    str(primaries),
                    f"{one.busiest_primary:.2f} × mean",
                    f"{100 * one.moved:.1f} %",
                    f"{100 * one.moved_by_modulo:.1f} %",
                ]
            )
    return drawn(rows)


if __name__ == "__main__":
    print(balance_table(), growth_table(), sep="\n\n")

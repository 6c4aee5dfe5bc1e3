"""The figures of docs/explanation/very-large-fleets.md that need no server: all tables, printed or written into the page.

    python bench/very_large.py [NAME …]            print tables; all of them take about ten seconds
    python bench/very_large.py --write [NAME …]    put them into the page
    python bench/very_large.py --check [NAME …]    exit 1 and name those that the page has otherwise

What stands in the page between `<!-- printed: NAME -->` and `<!-- end -->` is replaced, the rest is its own. The simulations
are seeded and have no clock, so that every machine prints the same.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import block_leases
import cells
import fleet_arithmetic
import shards

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "very-large-fleets.md"
TABLES: Final[dict[str, Callable[[], str]]] = {
    "inputs": fleet_arithmetic.inputs_table,
    "scales": fleet_arithmetic.scales_table,
    "bounds": fleet_arithmetic.bounds_table,
    "ids": fleet_arithmetic.ids_table,
    "balance": shards.balance_table,
    "growth": shards.growth_table,
    "edges": cells.edges_table,
    "move": cells.move_table,
    "limits": block_leases.ways_table,
    "faults": block_leases.faults_table,
}

_PRINTED: Final = re.compile(
    r"(?P<open><!-- printed: (?P<name>\w+) -->\n)(?P<body>.*?)(?P<close><!-- end -->)", re.DOTALL
)


def _filled(match: re.Match[str], tables: dict[str, str]) -> str:
    """Return one place of the page with its table, or as it is."""
    if match["name"] not in tables:
        return match[0]
    return f"{match['open']}\n{tables[match['name']]}\n\n{match['close']}"


def main() -> int:
    """Print, write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(TABLES))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - set(TABLES):
        parser.error(f"no table is named {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    tables = {name: TABLES[name]() for name in options.names or TABLES}
    if not (options.write or options.check):
        print(*tables.values(), sep="\n\n")
        return 0
    page = PAGE.read_text(encoding="utf-8")
    shown = {match["name"]: match["body"].strip() for match in _PRINTED.finditer(page)}
    wrong = [name for name, table in tables.items() if shown.get(name) != table]
    if options.write:
        if missing := [name for name in wrong if name not in shown]:
            print(f"the page has no place for: {', '.join(missing)}", file=sys.stderr)
            return 1
        PAGE.write_text(_PRINTED.sub(lambda match: _filled(match, tables), page), encoding="utf-8")
        return 0
    if wrong:
        print(
            f"{PAGE.name} is not current: {', '.join(wrong)}; run: python bench/very_large.py --write", file=sys.stderr
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m sennit` is `sennit`."""

from __future__ import annotations

import sys

from sennit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""What all tests share: property tests draw the same examples everywhere.

A run that explores instead: `HYPOTHESIS_PROFILE=explore python3 dev.py test -k property`.
"""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: on a busy machine it fails examples that are only slow.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

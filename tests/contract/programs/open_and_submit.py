"""Opens each of the files it is given when told to, and hands in one task.

Usage: open_and_submit.py FILE …
"""

from __future__ import annotations

import sys
from contextlib import closing

from sennit.model.task import Ref, TaskSpec
from sennit.store.sqlite import SqliteStore

for name in sys.argv[1:]:
    sys.stdin.readline()
    with closing(SqliteStore(name, durability="normal")) as store:
        (task_id,) = store.take_ids(1)
        store.submit([TaskSpec(ref=Ref(task_id), handler="work", queue="q", payload=b"{}")]).result(timeout_s=30)
    sys.stdout.write("stored\n")
    sys.stdout.flush()

"""Keys: at most one retained task per (handler, key), and per (parent, child key)."""

from __future__ import annotations

from sennit.errors import DuplicateKey
from sennit.model.lifecycle import State
from sennit.model.task import ErrorInfo, TaskSpec
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.moves.end import stop

_BY_KEY = "SELECT id, state FROM sennit_task WHERE handler = ? AND key = ?"
_BY_CHILD_KEY = "SELECT id FROM sennit_task WHERE parent_id = ? AND child_key = ?"
_DROP_KEY = "UPDATE sennit_task SET key = NULL WHERE id = ?"


def exists(connection: Connection, effects: Effects, spec: TaskSpec) -> bool:
    """True, with the Ref set to the stored task, when this submit finds one by its key.

    Raises:
        DuplicateKey: the caller rolls back.
    """
    if spec.child_key is not None:
        row = connection.execute(_BY_CHILD_KEY, (spec.parent_id, spec.child_key)).fetchone()
        if row is not None:
            spec.ref.id = row[0]
            return True
    if spec.key is None:
        return False
    row = connection.execute(_BY_KEY, (spec.handler, spec.key)).fetchone()
    if row is None:
        return False
    stored_id, state = row
    match spec.on_conflict:
        case "existing":
            spec.ref.id = stored_id
            return True
        case "reject":
            raise DuplicateKey(spec.handler, spec.key, stored_id)
        case "replace":
            connection.execute(_DROP_KEY, (stored_id,))
            if not state:
                error = ErrorInfo(kind="cancelled", message=f"replaced by task {spec.ref.id} with the same key")
                stop(connection, effects, [stored_id], State.CANCELLED, error)
            return False

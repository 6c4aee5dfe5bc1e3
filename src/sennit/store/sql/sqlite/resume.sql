-- resume: suspended -> ready. Atomic because the row that leaves sennit_parked is the permission to place it.

DELETE FROM sennit_parked WHERE id = ? RETURNING attempt, failures, crashes, reason, since_us;

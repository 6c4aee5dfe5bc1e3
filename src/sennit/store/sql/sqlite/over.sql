-- over: a permit, or a request for one, is gone. Whoever deletes the row has ended the call, so it is settled once.

DELETE FROM sennit_permit WHERE id = ? AND worker_id IN (SELECT value FROM json_each(?))
RETURNING id, worker_id, provider, model, task_id, granted_us, mark;

-- with the attempts of these tasks
DELETE FROM sennit_permit WHERE task_id IN (SELECT value FROM json_each(?))
RETURNING id, worker_id, provider, model, task_id, granted_us, mark;

-- with the process
DELETE FROM sennit_permit WHERE worker_id = ?
RETURNING id, worker_id, provider, model, task_id, granted_us, mark;

-- with the store object of a process that lives on; what its attempts have goes with them
DELETE FROM sennit_permit
 WHERE worker_id IN (SELECT value FROM json_each(?)) AND (task_id IS NULL OR task_id NOT IN (SELECT id FROM sennit_running))
RETURNING id, worker_id, provider, model, task_id, granted_us, mark;

-- a client has become a worker
UPDATE sennit_permit SET worker_id = ? WHERE worker_id = ?;

-- calls of a process, without the permits that came with its claims
SELECT EXISTS (SELECT 1 FROM sennit_permit
                WHERE worker_id IN (SELECT value FROM json_each(?)) AND (task_id IS NULL OR task_id <> id));

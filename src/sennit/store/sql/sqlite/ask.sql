-- ask: questions of suspended tasks. The state column is the permission: an open one is closed once.
-- Each statement uses the index that holds open ones only.

INSERT INTO sennit_ask (task_id, key, kind, name, event_key, spec, assignee, created_us, expires_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING;

SELECT id, state FROM sennit_ask WHERE task_id = ? AND key = ?;

-- the task had ended, was revived, and asks again
UPDATE sennit_ask SET kind = ?, name = ?, event_key = ?, spec = ?, assignee = ?, created_us = ?, expires_us = ?,
       state = 'open', level = 0, closed_us = NULL, version = version + 1
 WHERE id = ? AND state = 'void';

UPDATE sennit_ask SET state = ?, answer = ?, closed_us = ?, version = version + 1 WHERE id = ? AND state = 'open';

INSERT INTO sennit_step (task_id, key, result) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

UPDATE sennit_meta SET value = value + 1 WHERE name = 'inbox';

SELECT value FROM sennit_meta WHERE name = 'inbox';

-- expiry
SELECT id, task_id, key, kind, spec, level FROM sennit_ask
 WHERE state = 'open' AND expires_us IS NOT NULL AND expires_us <= ? ORDER BY expires_us, id LIMIT 1000;

UPDATE sennit_ask SET level = level + 1, assignee = ?, expires_us = ?, version = version + 1 WHERE id = ?;

-- signals
SELECT id, task_id, key, kind FROM sennit_ask
 WHERE state = 'open' AND kind = 'event' AND name = ? AND event_key = ? ORDER BY id;

INSERT INTO sennit_signal (name, event_key, payload, at_us) VALUES (?, ?, ?, ?);

SELECT id, payload FROM sennit_signal WHERE name = ? AND event_key = ? ORDER BY id LIMIT 1;

DELETE FROM sennit_signal WHERE id = ?;

-- looking; every filter is switched off by NULL. Open questions have an index of their own: years of closed ones do not
-- slow the inbox down.
SELECT a.id, a.task_id, t.handler, t.thread_id, a.spec, a.state, a.version, a.level, a.assignee, a.created_us,
       a.expires_us, a.closed_us, a.answer
  FROM sennit_ask AS a JOIN sennit_task AS t ON t.id = a.task_id
 WHERE a.id = ?;

SELECT a.id, a.task_id, t.handler, t.thread_id, a.spec, a.state, a.version, a.level, a.assignee, a.created_us,
       a.expires_us, a.closed_us, a.answer
  FROM sennit_ask AS a JOIN sennit_task AS t ON t.id = a.task_id
 WHERE a.kind = :kind AND a.id > :after_id AND a.state = 'open'
   AND (CAST(:thread_id AS TEXT) IS NULL OR t.thread_id = :thread_id) AND (CAST(:task_id AS BIGINT) IS NULL OR a.task_id = :task_id)
   AND (CAST(:assignee AS TEXT) IS NULL OR a.assignee = :assignee)
 ORDER BY a.id LIMIT :n;

SELECT a.id, a.task_id, t.handler, t.thread_id, a.spec, a.state, a.version, a.level, a.assignee, a.created_us,
       a.expires_us, a.closed_us, a.answer
  FROM sennit_ask AS a JOIN sennit_task AS t ON t.id = a.task_id
 WHERE a.kind = :kind AND a.id > :after_id AND (CAST(:states AS TEXT) IS NULL OR a.state IN (SELECT value FROM json_each(:states)))
   AND (CAST(:thread_id AS TEXT) IS NULL OR t.thread_id = :thread_id) AND (CAST(:task_id AS BIGINT) IS NULL OR a.task_id = :task_id)
   AND (CAST(:assignee AS TEXT) IS NULL OR a.assignee = :assignee)
 ORDER BY a.id LIMIT :n;

SELECT a.id, a.task_id, t.handler, t.thread_id, a.spec, a.state, a.version, a.level, a.assignee, a.created_us,
       a.expires_us, a.closed_us, a.answer
  FROM sennit_ask AS a JOIN sennit_task AS t ON t.id = a.task_id
 WHERE a.kind = :kind AND a.id > :after_id AND (CAST(:states AS TEXT) IS NULL OR a.state IN (SELECT value FROM json_each(:states)))
   AND (CAST(:thread_id AS TEXT) IS NULL OR t.thread_id = :thread_id) AND (CAST(:task_id AS BIGINT) IS NULL OR a.task_id = :task_id)
   AND (CAST(:assignee AS TEXT) IS NULL OR a.assignee = :assignee)
 ORDER BY a.id DESC LIMIT :n;

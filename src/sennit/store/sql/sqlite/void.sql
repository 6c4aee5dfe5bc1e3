-- void: what ends takes its open questions along. Who asks has seen that there are open ones at all (end.sql).

UPDATE sennit_ask SET state = 'void', closed_us = ?, version = version + 1
 WHERE state = 'open' AND task_id IN (SELECT value FROM json_each(?)) RETURNING kind;

UPDATE sennit_meta SET value = value + 1 WHERE name = 'inbox';

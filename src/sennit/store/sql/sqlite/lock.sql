-- lock: a wish stands in line, the first that fits beside the holders gets a token, whoever lets go passes it on.
-- One transaction under the write lock each, so that nobody sees a line between two of its statements. The waiting of a
-- name are found in order by sennit_lock_line_wait, a grant by (name, token).

-- ask
INSERT INTO sennit_lock_line (id, name, seq, worker_id, owner, shared, n_max, ttl_us, asked_us)
SELECT ?1, ?2, coalesce((SELECT max(seq) FROM sennit_lock_line WHERE name = ?2), 0) + 1, ?3, ?4, ?5, ?6, ?7, ?8;

-- those whose time is over hold it no more
DELETE FROM sennit_lock_line WHERE name = ? AND token IS NOT NULL AND until_us <= ?;

-- serve: how many hold it, whether all of them share it, when the first of them is over; and who is first in line
SELECT h.n, h.all_shared, h.until_us, w.id, w.worker_id, w.shared, w.n_max, w.ttl_us, w.asked_us
  FROM (SELECT count(*) AS n, coalesce(min(shared), 1) AS all_shared, min(until_us) AS until_us FROM sennit_lock_line
         WHERE name = ?1 AND token IS NOT NULL) AS h
  LEFT JOIN (SELECT id, worker_id, shared, n_max, ttl_us, asked_us FROM sennit_lock_line
              WHERE name = ?1 AND token IS NULL ORDER BY seq LIMIT 1) AS w ON 1 = 1;

-- the next token of a name; those of a new name begin where those of names that were pruned have ended
INSERT INTO sennit_lock (name, token, used_us) SELECT ?, value + 1, ? FROM sennit_meta WHERE name = 'lock_floor'
    ON CONFLICT (name) DO UPDATE SET token = sennit_lock.token + 1, used_us = excluded.used_us RETURNING token;

UPDATE sennit_lock_line SET token = ?, granted_us = ?, until_us = ? WHERE id = ?;

-- extend
UPDATE sennit_lock_line SET until_us = ? WHERE name = ? AND token = ? RETURNING shared, granted_us, asked_us;

-- release
DELETE FROM sennit_lock_line WHERE name = ? AND token = ? AND until_us > ? RETURNING until_us;

-- give up: what has become of one wish
SELECT name, until_us FROM sennit_lock_line WHERE id = ?;

DELETE FROM sennit_lock_line WHERE id = ?;

-- all that a process has and wants
SELECT id, name, token, shared, asked_us, granted_us, until_us FROM sennit_lock_line WHERE worker_id = ?;

DELETE FROM sennit_lock_line WHERE worker_id = ?;

UPDATE sennit_lock_line SET worker_id = ? WHERE worker_id = ?;

-- seize
DELETE FROM sennit_lock_line WHERE name = ? AND token IS NOT NULL RETURNING until_us;

-- what is due: names that somebody waits for and somebody has held for too long
SELECT DISTINCT w.name FROM sennit_lock_line AS w JOIN sennit_lock_line AS h ON h.name = w.name AND h.token IS NOT NULL
 WHERE w.token IS NULL AND h.until_us <= ?;

SELECT min(h.until_us) FROM sennit_lock_line AS w JOIN sennit_lock_line AS h ON h.name = w.name AND h.token IS NOT NULL
 WHERE w.token IS NULL;

-- fence
SELECT token FROM sennit_lock WHERE name = ?;

SELECT until_us FROM sennit_lock_line WHERE name = ? AND token = ? AND until_us > ?;

-- a foreign token is learnt from the write that carries it
INSERT INTO sennit_lock (name, token, used_us) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET token = excluded.token, used_us = excluded.used_us WHERE sennit_lock.token <= excluded.token;

-- look
SELECT name, token FROM sennit_lock WHERE name = ?;

SELECT k.name, k.token FROM sennit_lock AS k
 WHERE EXISTS (SELECT 1 FROM sennit_lock_line AS i WHERE i.name = k.name AND (i.token IS NULL OR i.until_us > ?))
 ORDER BY k.name;

SELECT id, owner, shared, n_max, token, coalesce(granted_us, asked_us), until_us FROM sennit_lock_line
 WHERE name = ? AND (token IS NULL OR until_us > ?) ORDER BY token IS NULL, token, seq;

-- prune: names that nobody has used for long. A fence of such a name is refused, and new tokens of it are greater.
UPDATE sennit_meta SET value = (
    SELECT max(token) FROM (
        SELECT value AS token FROM sennit_meta WHERE name = 'lock_floor'
        UNION ALL
        SELECT k.token FROM sennit_lock AS k
         WHERE k.used_us < ?1 AND k.name NOT LIKE 'redis:%' AND k.name NOT IN (SELECT name FROM sennit_lock_line)) AS old)
 WHERE name = 'lock_floor';

DELETE FROM sennit_lock WHERE used_us < ?1 AND name NOT LIKE 'redis:%' AND name NOT IN (SELECT name FROM sennit_lock_line);

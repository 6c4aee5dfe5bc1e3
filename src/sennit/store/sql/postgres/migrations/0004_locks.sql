-- 0004 locks: the newest token of each name, and who holds a lock or waits for it; the tables of sqlite/0004.

CREATE TABLE sennit_lock (
  name    text   PRIMARY KEY,
  token   bigint NOT NULL,
  used_us bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE sennit_lock_line (
  id         bigint PRIMARY KEY,
  name       text   NOT NULL,
  seq        bigint NOT NULL,
  worker_id  bigint NOT NULL,
  owner      text   NOT NULL,
  shared     bigint NOT NULL,
  n_max      bigint NOT NULL,
  ttl_us     bigint NOT NULL,
  asked_us   bigint NOT NULL,
  granted_us bigint,
  token      bigint,
  until_us   bigint
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX sennit_lock_line_token  ON sennit_lock_line (name, token)        WHERE token IS NOT NULL;
CREATE INDEX        sennit_lock_line_wait   ON sennit_lock_line (name, seq)          WHERE token IS NULL;
CREATE UNIQUE INDEX sennit_lock_line_seq    ON sennit_lock_line (name, seq);
CREATE INDEX        sennit_lock_line_worker ON sennit_lock_line (worker_id);
ALTER TABLE sennit_lock      SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE sennit_lock_line SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

INSERT INTO sennit_meta (name, value) VALUES ('lock_floor', 0);

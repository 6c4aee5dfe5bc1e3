-- 0004 locks: the newest token of each name, and who holds a lock or waits for it.

-- One row per name that was ever held; it is never at a smaller token, so it stays when everybody has let go.
CREATE TABLE sennit_lock (
  name    TEXT PRIMARY KEY,
  token   INTEGER NOT NULL,
  used_us INTEGER NOT NULL               -- retention: a name nobody has used for long goes, its token is kept in `lock_floor`
) WITHOUT ROWID;

-- One row per grant and per wish. `token` is NULL while it waits.
CREATE TABLE sennit_lock_line (
  id         INTEGER PRIMARY KEY,
  name       TEXT    NOT NULL,
  seq        INTEGER NOT NULL,           -- its place in the line of this name
  worker_id  INTEGER NOT NULL,
  owner      TEXT    NOT NULL,           -- for people
  shared     INTEGER NOT NULL,
  n_max      INTEGER NOT NULL,           -- of those that share it; 0 is any number
  ttl_us     INTEGER NOT NULL,
  asked_us   INTEGER NOT NULL,
  granted_us INTEGER,
  token      INTEGER,
  until_us   INTEGER
);
CREATE UNIQUE INDEX sennit_lock_line_token  ON sennit_lock_line (name, token)        WHERE token IS NOT NULL;
CREATE INDEX        sennit_lock_line_wait   ON sennit_lock_line (name, seq)          WHERE token IS NULL;
CREATE UNIQUE INDEX sennit_lock_line_seq    ON sennit_lock_line (name, seq);
CREATE INDEX        sennit_lock_line_worker ON sennit_lock_line (worker_id);

INSERT INTO sennit_meta (name, value) VALUES ('lock_floor', 0);

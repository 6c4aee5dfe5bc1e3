-- entry: the bounds that hold for all are bytes in sennit_meta.data, which has a column per type here. The move is that of sqlite/entry.sql.

-- instead of 18: the value is bytes
INSERT INTO sennit_meta (name, data) VALUES ('bounds', ?) ON CONFLICT (name) DO UPDATE SET data = excluded.data;

-- instead of 19: the value is bytes
SELECT data FROM sennit_meta WHERE name = 'bounds';

-- lane: the heads of the lanes are found in other words, on the same index. The move is that of sqlite/lane.sql.

-- instead of 1: a comparison of rows is one range of the index here, and the order of a UNION ALL is not promised
SELECT provider, route FROM sennit_ready
 WHERE queue = ?1 AND (provider, route) > (?2, ?3) ORDER BY provider, route LIMIT 1;

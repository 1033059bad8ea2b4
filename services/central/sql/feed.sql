-- name: lock_feed
SELECT position FROM feed FOR UPDATE

-- name: advance_feed
UPDATE feed SET position = $1

-- name: notify
SELECT pg_notify($1, '')

-- name: head
SELECT id, position, oldest FROM feed

-- name: supersede_change
UPDATE catalog_log SET superseded_at = $3 WHERE kind = $1 AND key = $2 AND superseded_at IS NULL

-- name: append_change
INSERT INTO catalog_log (position, kind, key, deleted, payload, at) VALUES ($1, $2, $3, $4, $5, $6)

-- name: changes_after
SELECT position, kind, key, deleted, payload FROM (
    SELECT l.*, sum(coalesce(pg_column_size(l.payload), 0)) OVER before AS bytes_before
    FROM (SELECT * FROM catalog_log WHERE position > $1 ORDER BY position LIMIT $2) l
    WINDOW before AS (ORDER BY l.position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
) b
WHERE coalesce(bytes_before, 0) < $3::bigint
ORDER BY position

-- name: catalog_as_of
SELECT position, kind, key, payload, available FROM (
    SELECT l.*, count(*) OVER () AS available, sum(coalesce(pg_column_size(l.payload), 0)) OVER before AS bytes_before
    FROM (
        SELECT * FROM catalog_log
        WHERE position <= $1 AND position > $2 AND (superseded_at IS NULL OR superseded_at > $1) AND NOT deleted
        ORDER BY position LIMIT $3
    ) l
    WINDOW before AS (ORDER BY l.position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
) b
WHERE coalesce(bytes_before, 0) < $4::bigint
ORDER BY position

-- name: forget_before
UPDATE feed SET oldest = greatest(oldest, coalesce((SELECT max(position) FROM catalog_log WHERE at < $1), 0))
RETURNING oldest

-- name: drop_forgotten
DELETE FROM catalog_log WHERE superseded_at <= $1 OR (deleted AND position <= $1)

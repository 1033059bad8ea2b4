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
SELECT position, kind, key, deleted, payload FROM catalog_log WHERE position > $1 ORDER BY position LIMIT $2

-- name: catalog_as_of
SELECT position, kind, key, payload FROM catalog_log
WHERE position <= $1 AND position > $2 AND (superseded_at IS NULL OR superseded_at > $1) AND NOT deleted
ORDER BY position LIMIT $3

-- name: forget_before
UPDATE feed SET oldest = greatest(oldest, coalesce((SELECT max(position) FROM catalog_log WHERE at < $1), 0))
RETURNING oldest

-- name: drop_forgotten
DELETE FROM catalog_log WHERE superseded_at <= $1 OR (deleted AND position <= $1)

-- Volumes and snapshots.

-- name: create_volume
-- See volume_functions.sql. $1 id, $2 app id, $3 name, $4 region, $5 bytes or 0 for the source's, $6 encrypted, $7 file system,
-- $8 days that snapshots are kept, $9 a snapshot each day, $10 dedication, $11 what is kept for a machine, $12 candidates,
-- $13 unique zone, $14 of all the app's volumes, $15 snapshot, $16 source volume, $17 key, $18 fingerprint, $19 moment.
SELECT * FROM create_volume($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)

-- name: get_volume
-- One volume. $1 id, $2 app id or ''.
SELECT * FROM volumes WHERE id = $1 AND $2 IN ('', app_id)

-- name: list_volumes
-- Volumes, oldest first. $1 app id or ''.
SELECT * FROM volumes WHERE $1 IN ('', app_id) ORDER BY created_at, id

-- name: some_volumes
-- Some volumes. $1 ids.
SELECT * FROM volumes WHERE id = ANY ($1)

-- name: update_volume
-- See volume_functions.sql. $1 id, $2 app id or '', $3 days that snapshots are kept or null, $4 a snapshot each day or null, $5 moment.
SELECT update_volume($1, $2, $3, $4, $5)

-- name: delete_volume
-- See volume_functions.sql. $1 id, $2 app id or '', $3 moment.
SELECT delete_volume($1, $2, $3)

-- name: copies_under_way
-- Volumes that are being made as copies of a volume. $1 its id.
SELECT id FROM volumes WHERE source_volume_id = $1 AND state = 1 ORDER BY id

-- name: extend_volume
-- See volume_functions.sql. $1 id, $2 app id or '', $3 bytes, $4 moment.
SELECT extend_volume($1, $2, $3, $4)

-- name: create_snapshot
-- See volume_functions.sql. $1 id, $2 volume id, $3 app id or '', $4 moment.
SELECT create_snapshot($1, $2, $3, $4)

-- name: get_snapshot
-- One snapshot. $1 id, $2 app id or ''.
SELECT * FROM snapshots WHERE id = $1 AND $2 IN ('', app_id)

-- name: list_snapshots
-- Snapshots of a volume that are kept, newest first. $1 volume id.
SELECT * FROM snapshots WHERE volume_id = $1 AND state <> 4 ORDER BY created_at DESC, id DESC

-- name: some_snapshots
-- Some snapshots. $1 ids.
SELECT * FROM snapshots WHERE id = ANY ($1)

-- name: report_volume
-- See volume_functions.sql. $1 worker id, $2 volume id, $3 state, $4 bytes, $5 reason, $6 moment.
SELECT report_volume($1, $2, $3, $4, $5, $6)

-- name: report_snapshot
-- See volume_functions.sql. $1 worker id, $2 snapshot id, $3 state, $4 bytes, $5 digest, $6 reason, $7 moment.
SELECT report_snapshot($1, $2, $3, $4, $5, $6, $7)

-- name: commit_at_volume
-- See volume_functions.sql. $1 new machine, $2 epoch or 0, $3 volume id.
SELECT * FROM commit_at_volume($1, $2, $3)

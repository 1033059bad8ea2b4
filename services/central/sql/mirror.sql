-- name: cell_revision
SELECT revision FROM mirror_cursors WHERE cell = $1

-- name: set_cell_revision
INSERT INTO mirror_cursors (cell, revision) VALUES ($1, $2)
ON CONFLICT (cell) DO UPDATE SET revision = excluded.revision

-- name: put_mirror_record
INSERT INTO mirror_records (cell, kind, key, revision, app_id, payload) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (cell, kind, key) DO UPDATE
SET revision = excluded.revision, app_id = excluded.app_id, payload = excluded.payload

-- name: drop_mirror_records
DELETE FROM mirror_records AS m USING unnest($2::text[], $3::text[]) AS gone (kind, key)
WHERE m.cell = $1 AND m.kind = gone.kind AND m.key = gone.key
RETURNING m.app_id

-- name: drop_uploads
DELETE FROM mirror_uploads WHERE cell = $1

-- name: add_upload
INSERT INTO mirror_uploads (cell, revision, kind, key, payload) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (cell, revision, kind, key) DO UPDATE SET payload = excluded.payload

-- name: drop_cell
DELETE FROM mirror_records WHERE cell = $1

-- name: publish_uploads
INSERT INTO mirror_records (cell, kind, key, revision, app_id, payload)
SELECT cell, kind, key, revision, payload ->> 'app_id', payload FROM mirror_uploads WHERE cell = $1 AND revision = $2

-- name: apps_of_cell
SELECT DISTINCT app_id FROM mirror_records WHERE cell = $1 AND app_id IS NOT NULL

-- name: app_statuses
SELECT apps.id,
       CASE
           WHEN EXISTS (
               SELECT FROM mirror_records AS m
               WHERE m.app_id = apps.id AND m.kind = 'machine' AND NOT m.payload ->> 'state' = ANY ($2::text[])
           ) THEN 'deployed'
           WHEN apps.status <> 'pending' OR EXISTS (
               SELECT FROM mirror_records AS m WHERE m.app_id = apps.id AND m.kind = 'release'
           ) THEN 'suspended'
           ELSE 'pending'
       END AS status
FROM apps
WHERE apps.id = ANY ($1::text[])

-- name: mirror_record
SELECT cell, kind, key, revision, payload FROM mirror_records WHERE kind = $1 AND key = $2 ORDER BY revision DESC LIMIT 1

-- name: mirror_records_of_app
SELECT cell, kind, key, revision, payload FROM mirror_records WHERE app_id = $1 AND kind = $2 ORDER BY key

-- Releases.

-- name: create_release
-- See release_functions.sql. $1 id, $2 app id, $3 strategy, $4 who made it, $5 image, $6 definition, $7 key, $8 moment.
SELECT * FROM create_release($1, $2, $3, $4, $5, $6, $7, $8)

-- name: update_release
-- See release_functions.sql. $1 id, $2 revision that it must be at, $3 status, $4 metadata, $5 moment.
SELECT update_release($1, $2, $3, $4, $5)

-- name: get_release
-- One release. $1 id.
SELECT * FROM releases WHERE id = $1

-- name: list_releases
-- Releases of an app, newest first, that one alone with its documents: they may be large. $1 app id, $2 limit.
SELECT r.id, r.app_id, r.version, r.status, r.strategy, r.made_by, r.image_ref, r.created_at, r.updated_at, r.revision,
    CASE WHEN r.version = newest.version THEN r.definition ELSE '' END AS definition,
    CASE WHEN r.version = newest.version THEN r.metadata ELSE '' END AS metadata
FROM releases r, (SELECT max(version) AS version FROM releases WHERE app_id = $1) newest
WHERE r.app_id = $1 ORDER BY r.version DESC LIMIT $2

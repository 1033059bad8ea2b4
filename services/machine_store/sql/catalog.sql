-- Apps.

-- name: create_app
-- See functions.sql. $1 id, $2 name, $3 organization, $4 network, $5 role, $6 home cell, $7 moment.
SELECT create_app($1, $2, $3, $4, $5, $6, $7)

-- name: get_app_by_id
-- One app, also a deleted one. $1 id.
SELECT * FROM apps WHERE id = $1

-- name: get_app
-- One app that is not deleted, and how many machines it has. $1 name.
SELECT a.*, (SELECT count(*) FROM machines m WHERE m.app_id = a.id AND m.state <> 10) AS machine_count,
    (SELECT count(*) FROM volumes v WHERE v.app_id = a.id AND v.state <> 7) AS volume_count,
    EXISTS (SELECT FROM machines m WHERE m.app_id = a.id) OR EXISTS (SELECT FROM releases r WHERE r.app_id = a.id) AS was_deployed
FROM apps a WHERE a.name = $1 AND a.deleted_at IS NULL

-- name: list_apps
-- Apps that are not deleted by name, and how many machines they have. $1 organization or ''.
SELECT a.*, (SELECT count(*) FROM machines m WHERE m.app_id = a.id AND m.state <> 10) AS machine_count,
    (SELECT count(*) FROM volumes v WHERE v.app_id = a.id AND v.state <> 7) AS volume_count,
    EXISTS (SELECT FROM machines m WHERE m.app_id = a.id) OR EXISTS (SELECT FROM releases r WHERE r.app_id = a.id) AS was_deployed
FROM apps a WHERE a.deleted_at IS NULL AND ($1 = '' OR a.organization_slug = $1) ORDER BY a.name

-- name: delete_app
-- See functions.sql. $1 id, $2 prefix of event ids, $3 source of the events, $4 moment.
SELECT delete_app($1, $2, $3, $4)

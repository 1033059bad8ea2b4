-- The catalog as a replica of the centre's, and the cursors of pull and mirror.

-- name: apply_catalog_changes
-- See replica_functions.sql. $1 duty, $2 term, $3 position before, $4 position after, $5 kinds, $6 ids, $7 records and
-- $8 prefixes of event ids, in fours, $9 moment.
SELECT * FROM apply_catalog_changes($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: put_catalog_records
-- See replica_functions.sql. $1 kinds, $2 ids, $3 records and $4 prefixes of event ids, in fours, $5 moment.
SELECT * FROM put_catalog_records($1, $2, $3, $4, $5)

-- name: list_catalog
-- Kind and id of every record that is not deleted, but for revocations: these stay.
SELECT 3::smallint AS kind, id FROM apps WHERE deleted_at IS NULL
UNION ALL
SELECT kind, id FROM catalog_records WHERE NOT deleted AND kind <> 9

-- name: get_catalog_state
-- How far the catalog is, and how much it holds.
SELECT position, changed_at,
    (SELECT count(*) FROM apps WHERE deleted_at IS NULL) AS apps,
    (SELECT count(*) FROM catalog_records WHERE kind = 5 AND NOT deleted) AS organizations,
    (SELECT count(*) FROM catalog_records WHERE kind = 6 AND NOT deleted) AS image_aliases
FROM catalog_state

-- name: get_secrets
-- The secrets of an app. $1 app id.
SELECT document FROM catalog_records WHERE kind = 7 AND id = $1 AND NOT deleted

-- name: get_cursor
-- Where the cursor of a duty is. $1 duty.
SELECT value FROM cursors WHERE duty = $1

-- name: set_cursor
-- See replica_functions.sql. $1 duty, $2 term, $3 value.
SELECT set_cursor($1, $2, $3)

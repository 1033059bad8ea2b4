-- name: insert_organization
INSERT INTO organizations (id, slug, name, type, paid_plan, billable, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING
RETURNING *

-- name: any_organization
SELECT true FROM organizations LIMIT 1

-- name: organizations
SELECT * FROM organizations ORDER BY slug

-- name: organization
SELECT * FROM organizations WHERE slug = $1 OR id = $1 ORDER BY slug = $1 DESC LIMIT 1

-- name: limits
SELECT * FROM limits WHERE organization_id = $1

-- name: set_limits
INSERT INTO limits (organization_id, cpus, memory_mb, gpus, machines) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (organization_id) DO UPDATE
SET cpus = excluded.cpus, memory_mb = excluded.memory_mb, gpus = excluded.gpus, machines = excluded.machines

-- name: insert_app
INSERT INTO apps (id, name, organization_id, network, role, home_cell, status, created_at)
VALUES ($1, $2, $3, $4, $5, $6, 'pending', $7)
ON CONFLICT DO NOTHING
RETURNING *

-- name: app
SELECT apps.*, organizations.slug AS organization_slug
FROM apps JOIN organizations ON organizations.id = apps.organization_id
WHERE apps.name = $1 OR apps.id = $1
ORDER BY apps.name = $1 DESC
LIMIT 1

-- name: app_by_either
SELECT true FROM apps WHERE name = $1 OR id = $2 LIMIT 1

-- name: apps
SELECT apps.*, organizations.slug AS organization_slug
FROM apps JOIN organizations ON organizations.id = apps.organization_id
WHERE ($1::text IS NULL OR organizations.slug = $1) AND apps.name > $2
ORDER BY apps.name
LIMIT $3

-- name: delete_app
DELETE FROM apps WHERE id = $1

-- name: set_app_status
UPDATE apps SET status = $2 WHERE id = $1 AND status <> $2

-- name: next_secrets_version
UPDATE apps SET secrets_version = secrets_version + 1 WHERE id = $1 RETURNING secrets_version

-- name: set_secret
INSERT INTO secrets (app_id, name, sealed, digest, version, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $6)
ON CONFLICT (app_id, name) DO UPDATE
SET sealed = excluded.sealed, digest = excluded.digest, version = excluded.version, updated_at = excluded.updated_at

-- name: delete_secrets
DELETE FROM secrets WHERE app_id = $1 AND name = ANY ($2::text[])

-- name: keep_only_secrets
DELETE FROM secrets WHERE app_id = $1 AND NOT name = ANY ($2::text[])

-- name: secrets
SELECT name, sealed, digest, version, created_at, updated_at FROM secrets WHERE app_id = $1 ORDER BY name

-- name: set_image_alias
INSERT INTO image_aliases (name, repository, digest, updated_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET repository = excluded.repository, digest = excluded.digest, updated_at = excluded.updated_at

-- name: delete_image_alias
DELETE FROM image_aliases WHERE name = $1

-- name: image_aliases
SELECT name, repository, digest, updated_at FROM image_aliases ORDER BY name

-- name: image_alias
SELECT name, repository, digest, updated_at FROM image_aliases
WHERE name = $1 OR digest = $1 OR repository || '@' || digest = $1
ORDER BY name = $1 DESC, updated_at DESC
LIMIT 1

-- name: newest_image_of
SELECT name, repository, digest, updated_at FROM image_aliases
WHERE repository = $1
ORDER BY updated_at DESC
LIMIT 1

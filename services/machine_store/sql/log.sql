-- Following the log, and the state that it leads to.

-- name: get_head
-- The newest revision, and the newest that is forgotten.
SELECT revision, purged_revision FROM counter

-- name: read_log
-- Entries after a revision; one row without entry when there is none. $1 revision, $2 limit.
SELECT c.revision AS newest_revision, c.purged_revision, l.*
FROM counter c LEFT JOIN LATERAL (
    SELECT * FROM log WHERE log.revision > $1 ORDER BY log.revision LIMIT $2
) l ON true
ORDER BY l.revision

-- name: wake_readers
-- Wake the readers of the log in other processes.
SELECT pg_notify('skerry_log', '')

-- name: has_other_readers
-- Whether other processes read the log. $1 the application name of those that do.
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE application_name = $1 AND datname = current_database() AND pid <> pg_backend_pid()
)

-- name: get_versions
-- Config, spec and parts of some versions. $1 machine ids and $2 instance ids, in pairs.
SELECT v.instance_id, v.config, v.spec, v.parts
FROM unnest($1::text[], $2::text[]) AS wanted (machine_id, instance_id)
JOIN versions v ON v.machine_id = wanted.machine_id AND v.instance_id = wanted.instance_id

-- name: state_of_apps
-- Apps that are not deleted.
SELECT revision, to_jsonb(a) AS record FROM apps a WHERE deleted_at IS NULL ORDER BY revision

-- name: state_of_workers
-- Workers.
SELECT revision, to_jsonb(w) AS record FROM workers w ORDER BY revision

-- name: state_of_machines
-- Machines that something of is left: not destroyed, or not yet let go of.
SELECT * FROM machines WHERE state <> 10 OR leaving_worker_id <> ''

-- name: state_of_worker_machines
-- Those that are on a worker or leave it. $1 worker id.
SELECT * FROM machines WHERE (worker_id = $1 AND state <> 10) OR (leaving_worker_id = $1 AND leaving_worker_id <> '')

-- name: state_of_app_machines
-- Those of an app. $1 app id.
SELECT * FROM machines WHERE app_id = $1 AND (state <> 10 OR leaving_worker_id <> '')

-- name: state_of_machine
-- One machine, also a destroyed one. $1 id.
SELECT * FROM machines WHERE id = $1

-- name: state_of_plan
-- The plan.
SELECT revision, document AS record FROM plan

-- name: state_of_releases
-- Releases of apps that are not deleted.
SELECT r.revision, to_jsonb(r) AS record FROM releases r JOIN apps a ON a.id = r.app_id AND a.deleted_at IS NULL
ORDER BY r.revision

-- name: state_of_organizations
-- Organizations that are not deleted.
SELECT revision, document AS record FROM catalog_records WHERE kind = 5 AND NOT deleted ORDER BY revision

-- name: state_of_image_aliases
-- Image aliases that are not deleted.
SELECT revision, document AS record FROM catalog_records WHERE kind = 6 AND NOT deleted ORDER BY revision

-- name: state_of_secrets
-- Secrets of apps that are not deleted.
SELECT revision, document - 'history' AS record FROM catalog_records WHERE kind = 7 AND NOT deleted ORDER BY revision

-- name: state_of_token_keys
-- Keys of tokens that are not retired.
SELECT revision, document AS record FROM catalog_records WHERE kind = 8 AND NOT deleted ORDER BY revision

-- name: state_of_revocations
-- Revocations, all that there ever were.
SELECT revision, document AS record FROM catalog_records WHERE kind = 9 ORDER BY revision

-- name: state_of_volumes
-- Volumes that are not destroyed.
SELECT revision, to_jsonb(v) - 'key' - 'fingerprint' AS record FROM volumes v WHERE state <> 7 ORDER BY revision

-- name: state_of_snapshots
-- Snapshots that are kept.
SELECT revision, to_jsonb(s) AS record FROM snapshots s WHERE state <> 4 ORDER BY revision

-- Reading machines. Columns of `machines` come as they are; config, spec and parts are those of the present version.

-- name: get_machine
-- One machine, whole, with its newest events, and the time. $1 id, $2 app id or '', $3 number of events.
SELECT m.*, v.config, v.spec, v.parts, clock_timestamp() AS now, ARRAY(
    SELECT ROW(e.id, e.type, e.status, e.source, e.at, e.request)
    FROM machine_events e WHERE e.machine_id = m.id ORDER BY e.id DESC LIMIT $3
) AS events
FROM machines m JOIN versions v ON v.machine_id = m.id AND v.instance_id = m.instance_id
WHERE m.id = $1 AND ($2 = '' OR m.app_id = $2)

-- name: get_machine_basic
-- One machine without its version, and the time. $1 id.
SELECT *, clock_timestamp() AS now FROM machines WHERE id = $1

-- name: get_time
-- The time, by which leases end.
SELECT clock_timestamp()

-- name: get_event
-- One event, by which a change is known to have been committed. $1 machine id, $2 event id.
SELECT id, type, status, source, at, request FROM machine_events WHERE machine_id = $1 AND id = $2

-- name: list_of_app_basic
-- Machines of an app, oldest first. $1 app id, $2 with destroyed ones, $3 states or null.
SELECT * FROM machines
WHERE app_id = $1 AND ($2 OR state <> 10) AND ($3::smallint[] IS NULL OR state = ANY ($3))
ORDER BY created_revision

-- name: list_of_app_full
-- The same with versions.
SELECT m.*, v.config, v.spec, v.parts
FROM machines m JOIN versions v ON v.machine_id = m.id AND v.instance_id = m.instance_id
WHERE m.app_id = $1 AND ($2 OR state <> 10) AND ($3::smallint[] IS NULL OR state = ANY ($3))
ORDER BY m.created_revision

-- name: list_all_basic
-- Machines of all apps, oldest first. $1 with destroyed ones, $2 states or null.
SELECT * FROM machines
WHERE ($1 OR state <> 10) AND ($2::smallint[] IS NULL OR state = ANY ($2))
ORDER BY created_revision

-- name: list_all_full
-- The same with versions.
SELECT m.*, v.config, v.spec, v.parts
FROM machines m JOIN versions v ON v.machine_id = m.id AND v.instance_id = m.instance_id
WHERE ($1 OR state <> 10) AND ($2::smallint[] IS NULL OR state = ANY ($2))
ORDER BY m.created_revision

-- name: page_of_app_basic
-- Machines of an app by the moment of their creation, after one. $1 app id, $2 with destroyed ones, $3 states or null, $4 and $5 when
-- that one was created, and its id.
SELECT * FROM machines
WHERE app_id = $1 AND ($2 OR state <> 10) AND ($3::smallint[] IS NULL OR state = ANY ($3)) AND (created_at, id) > ($4, $5)
ORDER BY created_at, id

-- name: page_of_app_full
-- The same with versions.
SELECT m.*, v.config, v.spec, v.parts
FROM machines m JOIN versions v ON v.machine_id = m.id AND v.instance_id = m.instance_id
WHERE m.app_id = $1 AND ($2 OR state <> 10) AND ($3::smallint[] IS NULL OR state = ANY ($3)) AND (m.created_at, m.id) > ($4, $5)
ORDER BY m.created_at, m.id

-- name: list_events
-- What happened to a machine, newest first; no row without such a machine. $1 id, $2 app id or '', $3 limit.
SELECT ARRAY(
    SELECT ROW(e.id, e.type, e.status, e.source, e.at, e.request)
    FROM machine_events e WHERE e.machine_id = m.id ORDER BY e.id DESC LIMIT $3
) AS events
FROM machines m WHERE m.id = $1 AND ($2 = '' OR m.app_id = $2)

-- name: list_versions
-- Versions of a machine, newest first, each with its configuration; one row without version when there is none, no row without
-- such a machine. $1 id, $2 app id or '', $3 limit.
SELECT v.instance_id, v.config, v.created_at
FROM machines m LEFT JOIN LATERAL (
    SELECT * FROM versions WHERE machine_id = m.id ORDER BY created_at DESC, instance_id DESC LIMIT $3
) v ON true
WHERE m.id = $1 AND ($2 = '' OR m.app_id = $2)
ORDER BY v.created_at DESC, v.instance_id DESC

-- name: get_idempotency_key
-- What a key has made; no row for one whose machine is forgotten. $1 app id, $2 key.
SELECT k.machine_id, k.fingerprint
FROM idempotency_keys k JOIN machines m ON m.id = k.machine_id WHERE k.app_id = $1 AND k.key = $2

-- name: observed_machines
-- The last sequence of a worker's present journal, with each of some machines; one row without machine when there is none.
-- $1 worker id, $2 journal id, $3 machine ids.
SELECT j.last_sequence, m.*, v.spec
FROM workers w JOIN journals j ON j.worker_id = w.id AND j.journal_id = w.journal_id
LEFT JOIN machines m ON m.id = ANY ($3)
LEFT JOIN versions v ON v.machine_id = m.id AND v.instance_id = m.instance_id
WHERE w.id = $1 AND w.journal_id = $2

-- name: commit_batch_under_plan
-- See plan_functions.sql. $1 new machines, $2 steps, $3 epochs of the machines, $4 epochs of the steps; 0 is not checked.
SELECT * FROM commit_batch_under_plan($1, $2, $3, $4)

-- The plan, what comparing has shown, who can serve, and what the centre converted before.

-- name: make_plan
-- See plan_functions.sql. $1 the plan of an empty database, $2 that of one with machines.
SELECT make_plan($1, $2)

-- name: get_plan
-- The present plan.
SELECT document FROM plan

-- name: change_plan
-- See plan_functions.sql. $1 expected epoch, $2 plan, $3 entries before, $4 entries after, $5 who, $6 why, $7 evidence,
-- $8 moment.
SELECT change_plan($1, $2, $3, $4, $5, $6, $7, $8)

-- name: list_plan_changes
-- Changes, newest first. $1 part or '', $2 limit.
SELECT * FROM plan_changes WHERE $1 = '' OR part = $1 ORDER BY epoch DESC, part LIMIT $2

-- name: record_comparisons
-- See plan_functions.sql. $1 part, $2 epoch, $3 hashes, $4 differences, $5 apps of these, $6 moment, $7 most inputs,
-- $8 most apps, $9 most differences.
SELECT record_comparisons($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: list_evidence
-- Evidence of every part of the plan, in the plan's order; nothing is known of a part that has changed since.
SELECT entry ->> 'part' AS part, (entry ->> 'since_epoch')::bigint AS since_epoch, coalesce(e.compared, 0) AS compared,
    coalesce(e.distinct_inputs, 0) AS distinct_inputs, coalesce(e.different, 0) AS different,
    coalesce(cardinality(e.apps), 0) AS different_apps
FROM plan, jsonb_array_elements(plan.document -> 'parts') WITH ORDINALITY AS entries (entry, place)
LEFT JOIN evidence e ON e.part = entry ->> 'part' AND e.since_epoch = (entry ->> 'since_epoch')::bigint
ORDER BY place

-- name: list_differences
-- Differences of all parts, newest first. $1 limit.
SELECT id, at, document FROM differences ORDER BY id DESC LIMIT $1

-- name: list_differences_of_part
-- Differences of a part, newest first. $1 part, $2 limit.
SELECT id, at, document FROM differences WHERE part = $1 ORDER BY id DESC LIMIT $2

-- name: register_converter
-- Tell that a converter lives; those that have not for long are forgotten. $1 name, $2 what it serves, $3 epoch, $4 lease,
-- $5 conversions that it refused because nobody serves a part.
WITH forgotten AS (
    DELETE FROM converters WHERE name <> $1 AND expires_at < clock_timestamp() - interval '1 hour'
)
INSERT INTO converters (name, serves, applied_epoch, lease, unserved_conversions, expires_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $4)
ON CONFLICT (name) DO UPDATE SET
    serves = excluded.serves, applied_epoch = excluded.applied_epoch, lease = excluded.lease,
    unserved_conversions = excluded.unserved_conversions, expires_at = excluded.expires_at

-- name: list_converters
-- Converters that live, by name.
SELECT name, serves, applied_epoch, lease, unserved_conversions
FROM converters WHERE expires_at > clock_timestamp() ORDER BY name

-- name: lookup_conversions
-- Conversions that are kept. Only a use that comes long after the last one is noted: it need not be exact.
-- $1 parts, $2 hashes and $3 versions, in triples.
WITH found AS (
    SELECT c.* FROM unnest($1::text[], $2::bytea[], $3::bigint[]) AS wanted (part, input_hash, version)
    JOIN conversions c USING (part, input_hash, version)
), stale AS (
    SELECT c.part, c.input_hash, c.version FROM conversions c JOIN found USING (part, input_hash, version)
    WHERE found.used_at < clock_timestamp() - interval '10 minutes' FOR UPDATE OF c SKIP LOCKED
), noted AS (
    UPDATE conversions c SET used_at = clock_timestamp() FROM stale
    WHERE (c.part, c.input_hash, c.version) = (stale.part, stale.input_hash, stale.version)
)
SELECT DISTINCT ON (part, input_hash, version) part, input_hash, version, spec FROM found

-- name: keep_conversions
-- See plan_functions.sql. $1 parts, $2 hashes, $3 versions and $4 specs, in fours, $5 most in all.
SELECT keep_conversions($1, $2, $3, $4, $5)

-- name: count_configurations
-- Machines that are not destroyed. $1 only those with a greater id.
SELECT count(*) FROM machines WHERE state <> 10 AND id > $1

-- name: list_configurations
-- What machines that are not destroyed are made of, by id. $1 only those with a greater id.
SELECT m.id, m.app_name, m.region, v.created_at, v.config, v.spec, v.parts
FROM machines m JOIN versions v ON v.machine_id = m.id AND v.instance_id = m.instance_id
WHERE m.state <> 10 AND m.id > $1 ORDER BY m.id

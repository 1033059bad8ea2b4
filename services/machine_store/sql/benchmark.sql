-- name: copy_machines
-- Copies of the stored machines, behind the back of the log. $1 how many, $2 the cell, $3 how many are stored.
WITH made AS (SELECT *, row_number() OVER (ORDER BY id) - 1 AS place FROM machines),
copied AS (
    INSERT INTO machines (
        id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id, worker_number,
        reserved, host_status, created_at, updated_at, created_revision, revision, details
    )
    SELECT $2 || lpad(to_hex(number), 11, '0'), app_id, app_name, 'copy-' || number, region, state, desired, generation,
        instance_id, worker_id, worker_number, reserved, host_status, created_at, updated_at, created_revision,
        revision, details
    FROM generate_series(1, $1::bigint) AS number JOIN made ON made.place = number % $3
    RETURNING id, instance_id
)
INSERT INTO versions (machine_id, instance_id, created_at, config, spec, parts)
SELECT copied.id, copied.instance_id, v.created_at, v.config, v.spec, v.parts
FROM copied JOIN versions v ON v.instance_id = copied.instance_id

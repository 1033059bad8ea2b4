-- Workers, their signs of life, and who leads a duty.

-- name: register_worker
-- See functions.sql. $1 id, $2 zone, $3 address, $4 driver, $5 dedication, $6 journal, $7 capacity.
SELECT register_worker($1, $2, $3, $4, $5, $6, $7)

-- name: get_worker
-- One worker with its last sign of life and the last sequence of its journal. $1 id.
SELECT w.*, h.at AS heartbeat_at, j.last_sequence
FROM workers w
LEFT JOIN heartbeats h ON h.worker_id = w.id
LEFT JOIN journals j ON j.worker_id = w.id AND j.journal_id = w.journal_id
WHERE w.id = $1

-- name: list_workers
-- Workers by id, with their last signs of life and the time that these are measured by.
SELECT w.*, h.at AS heartbeat_at, clock_timestamp() AS now
FROM workers w LEFT JOIN heartbeats h ON h.worker_id = w.id ORDER BY w.id

-- name: get_time
-- The time that heartbeats and leases are measured by.
SELECT clock_timestamp()

-- name: heartbeat
-- Note a sign of life of a worker under its present journal; no row without such a worker. $1 id, $2 journal.
UPDATE heartbeats h SET at = clock_timestamp()
FROM workers w WHERE w.id = h.worker_id AND h.worker_id = $1 AND w.journal_id = $2
RETURNING h.at

-- name: acquire_duty
-- Take or keep a lead if it is free, run out or one's own; no row when it is another's. $1 duty, $2 holder, $3 lease.
INSERT INTO duties AS d (duty, holder, term, expires_at) VALUES ($1, $2, 1, clock_timestamp() + $3)
ON CONFLICT (duty) DO UPDATE SET
    holder = excluded.holder,
    term = d.term + CASE WHEN d.holder = excluded.holder THEN 0 ELSE 1 END,
    expires_at = excluded.expires_at
WHERE d.holder = excluded.holder OR d.expires_at < clock_timestamp()
RETURNING holder, term

-- name: get_duty
-- Who leads. $1 duty.
SELECT holder, term FROM duties WHERE duty = $1

-- name: set_worker_status
-- See functions.sql. $1 duty, $2 term, $3 worker id, $4 status.
SELECT set_worker_status($1, $2, $3, $4)

-- name: repair_reservations
-- See functions.sql. $1 duty, $2 term.
SELECT repair_reservations($1, $2) AS worker_id

-- name: purge_log
-- See functions.sql. $1 duty, $2 term, $3 age, $4 most.
SELECT purge_log($1, $2, $3, $4)

-- name: purge_keys
-- See functions.sql. $1 duty, $2 term, $3 age, $4 most.
SELECT purge_keys($1, $2, $3, $4)

-- name: purge_volumes
-- See volume_functions.sql. $1 duty, $2 term, $3 age, $4 most.
SELECT purge_volumes($1, $2, $3, $4)

-- name: purge_machines
-- See functions.sql. $1 duty, $2 term, $3 age, $4 most.
SELECT purge_machines($1, $2, $3, $4)

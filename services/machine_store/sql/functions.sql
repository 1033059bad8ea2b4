-- What has to be one transaction and one round trip: functions, so that a client that stops in the middle holds no lock.
-- Each locks the row of `counter` before it looks at anything. In READ COMMITTED every statement of a VOLATILE function
-- sees what was committed before it began, so all checks see everything that earlier writers committed, revisions are in
-- the order of commits, without gaps, and the rows of workers are never locked in two orders.

-- name: type_new_machine
-- A machine to create; amounts are in the order of RESOURCE_FIELDS, candidates best first.
CREATE TYPE new_machine AS (
    id text,
    instance_id text,
    app_id text,
    name text,
    region text,
    state smallint,
    desired smallint,
    generation bigint,
    need bigint[],
    candidates text[],
    idempotency_key text,
    fingerprint bytea,
    at timestamptz,
    details bytea,
    config bytea,
    spec bytea,
    parts bytea,
    event_id text,
    event_status text,
    event_source text
)

-- name: type_machine_step
-- A change of a machine, of a unit whose steps take effect in order until one does not.
-- journal_id, previous_sequence, sequence: of an observation, else null. machine_id: null when only the journal advances.
-- expected_revision: the row must still have it; null when the step before, of the same unit, wrote the row.
-- need: null keeps the reservation. leaves: a move has to wait for the old worker. let_go: that worker has let go.
-- config, spec, parts: of a new version, else null. event_id: null without an event.
CREATE TYPE machine_step AS (
    unit integer,
    observer text,
    journal_id text,
    previous_sequence bigint,
    sequence bigint,
    machine_id text,
    expected_revision bigint,
    name text,
    state smallint,
    desired smallint,
    generation bigint,
    instance_id text,
    reason text,
    at timestamptz,
    details bytea,
    need bigint[],
    candidates text[],
    leaves boolean,
    let_go boolean,
    config bytea,
    spec bytea,
    parts bytea,
    event_id text,
    event_type text,
    event_status text,
    event_source text,
    event_at timestamptz,
    event_request bytea
)

-- name: type_batch_outcome
-- What became of one new machine or one step.
-- outcome: done, repeated, other_request, no_app, id_taken, name_taken, over_quota (reserved has the most machines that the
-- organization may have, and how many there are), no_room, missing, conflict, out_of_sequence, skipped.
CREATE TYPE batch_outcome AS (
    outcome text,
    machine_id text,
    revision bigint,
    app_name text,
    worker_id text,
    worker_number integer,
    leaving_worker_id text,
    reserved bigint[],
    leaving_reserved bigint[],
    host_status smallint
)

-- name: type_room
-- The worker that room was taken on; the number is null when there was none.
CREATE TYPE room AS (
    number integer,
    status smallint
)

-- name: function_take_room
-- Reserve `need` on a worker and give `freed` back, if that fits; when it is `new_here`, unless the worker is cordoned.
CREATE FUNCTION take_room(worker text, need bigint[], freed bigint[], new_here boolean) RETURNS room
LANGUAGE plpgsql AS $$
DECLARE
    taken room;
BEGIN
    UPDATE workers SET
        reserved_shared_cpu_millicores = greatest(0, reserved_shared_cpu_millicores + need[1] - freed[1]),
        reserved_performance_cpu_millicores = greatest(0, reserved_performance_cpu_millicores + need[2] - freed[2]),
        reserved_memory_bytes = greatest(0, reserved_memory_bytes + need[3] - freed[3]),
        reserved_disk_bytes = greatest(0, reserved_disk_bytes + need[4] - freed[4]),
        reserved_gpus_a10 = greatest(0, reserved_gpus_a10 + need[5] - freed[5]),
        reserved_gpus_l40s = greatest(0, reserved_gpus_l40s + need[6] - freed[6]),
        reserved_gpus_a100_40gb = greatest(0, reserved_gpus_a100_40gb + need[7] - freed[7]),
        reserved_gpus_a100_80gb = greatest(0, reserved_gpus_a100_80gb + need[8] - freed[8])
    WHERE id = worker
      AND NOT (new_here AND cordoned)
      AND reserved_shared_cpu_millicores + need[1] - freed[1] <= capacity_shared_cpu_millicores
      AND reserved_performance_cpu_millicores + need[2] - freed[2] <= capacity_performance_cpu_millicores
      AND reserved_memory_bytes + need[3] - freed[3] <= capacity_memory_bytes
      AND reserved_disk_bytes + need[4] - freed[4] <= capacity_disk_bytes
      AND reserved_gpus_a10 + need[5] - freed[5] <= capacity_gpus_a10
      AND reserved_gpus_l40s + need[6] - freed[6] <= capacity_gpus_l40s
      AND reserved_gpus_a100_40gb + need[7] - freed[7] <= capacity_gpus_a100_40gb
      AND reserved_gpus_a100_80gb + need[8] - freed[8] <= capacity_gpus_a100_80gb
    RETURNING number, status INTO taken;
    RETURN taken;
END
$$

-- name: function_give_back
-- Give `freed` back to a worker. Never below nothing: a reservation that had drifted must not keep a machine from going.
CREATE FUNCTION give_back(worker text, freed bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE workers SET
        reserved_shared_cpu_millicores = greatest(0, reserved_shared_cpu_millicores - freed[1]),
        reserved_performance_cpu_millicores = greatest(0, reserved_performance_cpu_millicores - freed[2]),
        reserved_memory_bytes = greatest(0, reserved_memory_bytes - freed[3]),
        reserved_disk_bytes = greatest(0, reserved_disk_bytes - freed[4]),
        reserved_gpus_a10 = greatest(0, reserved_gpus_a10 - freed[5]),
        reserved_gpus_l40s = greatest(0, reserved_gpus_l40s - freed[6]),
        reserved_gpus_a100_40gb = greatest(0, reserved_gpus_a100_40gb - freed[7]),
        reserved_gpus_a100_80gb = greatest(0, reserved_gpus_a100_80gb - freed[8])
    WHERE id = worker;
END
$$

-- name: function_commit_batch
-- Create machines, then change machines; an outcome for each, in this order. None sinks another.
CREATE FUNCTION commit_batch(creates new_machine[], steps machine_step[]) RETURNS SETOF batch_outcome
LANGUAGE plpgsql AS $$
DECLARE
    nothing CONSTANT bigint[] := '{0,0,0,0,0,0,0,0}';
    destroyed CONSTANT smallint := 10;
    head bigint;
    first bigint;
    c new_machine;
    s machine_step;
    m machines%ROWTYPE;
    o batch_outcome;
    none batch_outcome;
    taken room;
    candidate text;
    failed_unit integer;
    key_fingerprint bytea;
    existing_instance text;
    organization text;
    counted text;
    most bigint;
    present bigint;
BEGIN
    SELECT revision INTO STRICT head FROM counter FOR UPDATE;
    first := head;

    FOREACH c IN ARRAY creates LOOP
        o := none;
        o.machine_id := c.id;
        IF c.idempotency_key <> '' THEN
            -- A key whose machine is forgotten is as good as new.
            SELECT k.machine_id, k.fingerprint INTO o.machine_id, key_fingerprint
            FROM idempotency_keys k JOIN machines ON machines.id = k.machine_id
            WHERE k.app_id = c.app_id AND k.key = c.idempotency_key;
            IF FOUND THEN
                o.outcome := CASE WHEN key_fingerprint = c.fingerprint THEN 'repeated' ELSE 'other_request' END;
                RETURN NEXT o;
                CONTINUE;
            END IF;
            o.machine_id := c.id;
        END IF;
        SELECT name, organization_slug INTO o.app_name, organization FROM apps WHERE id = c.app_id AND deleted_at IS NULL;
        IF NOT FOUND THEN
            o.outcome := 'no_app';
            RETURN NEXT o;
            CONTINUE;
        END IF;
        SELECT instance_id INTO existing_instance FROM machines WHERE id = c.id;
        IF FOUND THEN
            o.outcome := CASE
                WHEN existing_instance = c.instance_id
                    OR EXISTS (SELECT FROM versions WHERE machine_id = c.id AND instance_id = c.instance_id)
                THEN 'repeated' ELSE 'id_taken' END;
            RETURN NEXT o;
            CONTINUE;
        END IF;
        IF EXISTS (SELECT FROM machines WHERE app_id = c.app_id AND name = c.name AND state <> 10) THEN
            o.outcome := 'name_taken';
            RETURN NEXT o;
            CONTINUE;
        END IF;
        -- Counted once for those of a batch that follow each other, and only where there is a bound.
        IF counted IS DISTINCT FROM organization THEN
            counted := organization;
            SELECT (r.document -> 'limits' ->> 'max_machines')::bigint INTO most FROM catalog_records r
            WHERE r.kind = 5 AND NOT r.deleted AND r.document -> 'limits' ? 'max_machines'
              AND r.document ->> 'slug' = organization;
            IF most IS NOT NULL THEN
                SELECT count(*) INTO present FROM apps a JOIN machines x ON x.app_id = a.id
                WHERE a.organization_slug = organization AND x.state <> 10;
            END IF;
        END IF;
        IF present >= most THEN
            o.outcome := 'over_quota';
            o.reserved := ARRAY[most, present];
            RETURN NEXT o;
            CONTINUE;
        END IF;
        taken := NULL;
        FOREACH candidate IN ARRAY c.candidates LOOP
            taken := take_room(candidate, c.need, nothing, true);
            EXIT WHEN taken.number IS NOT NULL;
        END LOOP;
        IF taken.number IS NULL THEN
            o.outcome := 'no_room';
            RETURN NEXT o;
            CONTINUE;
        END IF;

        head := head + 1;
        INSERT INTO machines (
            id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id, worker_number,
            reserved, host_status, created_at, updated_at, created_revision, revision, details
        ) VALUES (
            c.id, c.app_id, o.app_name, c.name, c.region, c.state, c.desired, c.generation, c.instance_id, candidate,
            taken.number, c.need, taken.status, c.at, c.at, head, head, c.details
        );
        INSERT INTO versions (machine_id, instance_id, created_at, config, spec, parts)
        VALUES (c.id, c.instance_id, c.at, c.config, c.spec, c.parts);
        INSERT INTO machine_events (machine_id, id, type, status, source, at)
        VALUES (c.id, c.event_id, 'launch', c.event_status, c.event_source, c.at);
        IF c.idempotency_key <> '' THEN
            INSERT INTO idempotency_keys (app_id, key, fingerprint, machine_id)
            VALUES (c.app_id, c.idempotency_key, c.fingerprint, c.id)
            ON CONFLICT (app_id, key) DO UPDATE SET
                fingerprint = excluded.fingerprint, machine_id = excluded.machine_id, created_at = excluded.created_at;
        END IF;
        INSERT INTO log (
            revision, kind, id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id,
            worker_number, leaving_worker_id, reserved, leaving_reserved, host_status, reason, created_at, updated_at, details,
            event_id, event_type, event_status, event_source, event_at
        ) VALUES (
            head, 1, c.id, c.app_id, o.app_name, c.name, c.region, c.state, c.desired, c.generation, c.instance_id, candidate,
            taken.number, '', c.need, '{}', taken.status, '', c.at, c.at, c.details,
            c.event_id, 'launch', c.event_status, c.event_source, c.at
        );
        o.outcome := 'done';
        o.revision := head;
        o.worker_id := candidate;
        o.worker_number := taken.number;
        o.leaving_worker_id := '';
        o.reserved := c.need;
        o.host_status := taken.status;
        present := present + 1;
        RETURN NEXT o;
    END LOOP;

    FOREACH s IN ARRAY steps LOOP
        o := none;
        o.machine_id := s.machine_id;
        IF s.unit = failed_unit THEN
            o.outcome := 'skipped';
            RETURN NEXT o;
            CONTINUE;
        END IF;
        IF s.machine_id IS NOT NULL THEN
            SELECT * INTO m FROM machines WHERE id = s.machine_id;
            IF NOT FOUND THEN
                o.outcome := 'missing';
            ELSIF m.revision <> s.expected_revision THEN
                o.outcome := 'conflict';
            ELSIF s.config IS NOT NULL
                AND EXISTS (SELECT FROM versions WHERE machine_id = s.machine_id AND instance_id = s.instance_id)
            THEN
                o.outcome := 'repeated';
            ELSIF m.name <> s.name AND EXISTS (
                SELECT FROM machines WHERE app_id = m.app_id AND name = s.name AND state <> 10
            ) THEN
                o.outcome := 'name_taken';
            END IF;
        END IF;
        IF o.outcome IS NULL AND s.journal_id IS NOT NULL THEN
            UPDATE journals SET last_sequence = s.sequence
            WHERE worker_id = s.observer AND journal_id = s.journal_id AND last_sequence = s.previous_sequence;
            IF NOT FOUND THEN
                o.outcome := 'out_of_sequence';
            END IF;
        END IF;
        IF o.outcome IS NULL AND s.machine_id IS NULL THEN
            o.outcome := 'done';
            RETURN NEXT o;
            CONTINUE;
        END IF;
        IF o.outcome IS NULL AND s.need IS NOT NULL AND s.need <> m.reserved THEN
            taken := take_room(m.worker_id, s.need, m.reserved, false);
            IF taken.number IS NULL THEN
                FOREACH candidate IN ARRAY s.candidates LOOP
                    CONTINUE WHEN candidate IN (m.worker_id, m.leaving_worker_id);
                    taken := take_room(candidate, s.need, nothing, true);
                    EXIT WHEN taken.number IS NOT NULL;
                END LOOP;
                IF taken.number IS NULL THEN
                    o.outcome := 'no_room';
                ELSE
                    -- While a machine leaves one worker, it cannot have been started by the next.
                    IF s.leaves AND m.leaving_worker_id = '' THEN
                        m.leaving_worker_id := m.worker_id;
                        m.leaving_reserved := m.reserved;
                    ELSE
                        PERFORM give_back(m.worker_id, m.reserved);
                    END IF;
                    m.worker_id := candidate;
                    m.worker_number := taken.number;
                    m.host_status := taken.status;
                END IF;
            END IF;
            m.reserved := s.need;
        END IF;
        IF o.outcome IS NOT NULL THEN
            failed_unit := s.unit;
            RETURN NEXT o;
            CONTINUE;
        END IF;
        IF s.let_go AND m.leaving_worker_id <> '' THEN
            PERFORM give_back(m.leaving_worker_id, m.leaving_reserved);
            m.leaving_worker_id := '';
            m.leaving_reserved := '{}';
        END IF;
        IF s.state = destroyed AND m.state <> destroyed THEN
            PERFORM give_back(m.worker_id, m.reserved);
            m.reserved := '{}';
        END IF;

        head := head + 1;
        IF s.config IS NOT NULL THEN
            INSERT INTO versions (machine_id, instance_id, created_at, config, spec, parts)
            VALUES (s.machine_id, s.instance_id, s.at, s.config, s.spec, s.parts);
        END IF;
        IF s.event_id IS NOT NULL THEN
            INSERT INTO machine_events (machine_id, id, type, status, source, at, request)
            VALUES (s.machine_id, s.event_id, s.event_type, s.event_status, s.event_source, s.event_at, s.event_request);
        END IF;
        UPDATE machines SET
            name = s.name, state = s.state, desired = s.desired, generation = s.generation, instance_id = s.instance_id,
            worker_id = m.worker_id, worker_number = m.worker_number, leaving_worker_id = m.leaving_worker_id,
            reserved = m.reserved, leaving_reserved = m.leaving_reserved, host_status = m.host_status, reason = s.reason,
            updated_at = s.at, revision = head, details = s.details
        WHERE id = s.machine_id;
        INSERT INTO log (
            revision, kind, id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id,
            worker_number, leaving_worker_id, reserved, leaving_reserved, host_status, reason, created_at, updated_at, details,
            event_id, event_type, event_status, event_source, event_at, event_request
        ) VALUES (
            head, 1, m.id, m.app_id, m.app_name, s.name, m.region, s.state, s.desired, s.generation, s.instance_id, m.worker_id,
            m.worker_number, m.leaving_worker_id, m.reserved, m.leaving_reserved, m.host_status, s.reason, m.created_at, s.at,
            s.details, s.event_id, s.event_type, s.event_status, s.event_source, s.event_at, s.event_request
        );
        o.outcome := 'done';
        o.revision := head;
        o.app_name := m.app_name;
        o.worker_id := m.worker_id;
        o.worker_number := m.worker_number;
        o.leaving_worker_id := m.leaving_worker_id;
        o.reserved := m.reserved;
        o.leaving_reserved := m.leaving_reserved;
        o.host_status := m.host_status;
        RETURN NEXT o;
    END LOOP;

    -- Readers are woken afterwards (see log.sql): a notification would make every commit half as long again.
    IF head <> first THEN
        UPDATE counter SET revision = head;
    END IF;
END
$$

-- name: function_next_revision
-- The revision of a change that is one entry of the log; locks the counter until the transaction ends.
CREATE FUNCTION next_revision() RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    head bigint;
BEGIN
    UPDATE counter SET revision = revision + 1 RETURNING revision INTO STRICT head;
    PERFORM pg_notify('skerry_log', head::text);
    RETURN head;
END
$$

-- name: function_check_term
-- Raise SK001 unless `term` is the duty's present one; it stays so until the transaction ends.
CREATE FUNCTION check_term(duty_name text, wanted bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM duties WHERE duty = duty_name AND term = wanted FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'term % of duty % is over', wanted, duty_name USING ERRCODE = 'SK001';
    END IF;
END
$$

-- name: function_log_worker
-- Append a worker's row as it now is to the log.
CREATE FUNCTION log_worker(worker text, head bigint) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO log (revision, kind, id, record) SELECT head, 2, w.id, to_jsonb(w) FROM workers w WHERE w.id = worker
$$

-- name: function_register_worker
-- Insert or change a worker, note its journal and its sign of life; appends to the log only if something changed.
-- Answers the amounts of which less is offered than is reserved; nothing is written when there are any.
CREATE FUNCTION register_worker(
    worker text, zone text, address text, driver text, dedication text, journal text, capacity bigint[]
) RETURNS text[]
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    w workers%ROWTYPE;
    short text[];
    head bigint;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    SELECT * INTO w FROM workers WHERE workers.id = worker;
    IF NOT FOUND THEN
        head := next_revision();
        INSERT INTO workers (
            id, number, zone, address, driver, host_dedication_id, status, journal_id, revision,
            capacity_shared_cpu_millicores, capacity_performance_cpu_millicores, capacity_memory_bytes, capacity_disk_bytes, capacity_gpus_a10, capacity_gpus_l40s, capacity_gpus_a100_40gb, capacity_gpus_a100_80gb
        )
        SELECT worker, coalesce(max(workers.number), 0) + 1, zone, address, driver, dedication, 1, journal, head,
            capacity[1], capacity[2], capacity[3], capacity[4], capacity[5], capacity[6], capacity[7], capacity[8]
        FROM workers;
        PERFORM log_worker(worker, head);
    ELSE
        SELECT CASE WHEN w.reserved_shared_cpu_millicores > capacity[1] THEN ARRAY['shared_cpu_millicores'] ELSE '{}' END
        || CASE WHEN w.reserved_performance_cpu_millicores > capacity[2] THEN ARRAY['performance_cpu_millicores'] ELSE '{}' END
        || CASE WHEN w.reserved_memory_bytes > capacity[3] THEN ARRAY['memory_bytes'] ELSE '{}' END
        || CASE WHEN w.reserved_disk_bytes > capacity[4] THEN ARRAY['disk_bytes'] ELSE '{}' END
        || CASE WHEN w.reserved_gpus_a10 > capacity[5] THEN ARRAY['gpus_a10'] ELSE '{}' END
        || CASE WHEN w.reserved_gpus_l40s > capacity[6] THEN ARRAY['gpus_l40s'] ELSE '{}' END
        || CASE WHEN w.reserved_gpus_a100_40gb > capacity[7] THEN ARRAY['gpus_a100_40gb'] ELSE '{}' END
        || CASE WHEN w.reserved_gpus_a100_80gb > capacity[8] THEN ARRAY['gpus_a100_80gb'] ELSE '{}' END
        INTO short;
        IF cardinality(short) > 0 THEN
            RETURN short;
        END IF;
        IF (w.zone, w.address, w.driver, w.host_dedication_id,
            ARRAY[w.capacity_shared_cpu_millicores, w.capacity_performance_cpu_millicores, w.capacity_memory_bytes, w.capacity_disk_bytes, w.capacity_gpus_a10, w.capacity_gpus_l40s, w.capacity_gpus_a100_40gb, w.capacity_gpus_a100_80gb])
            IS DISTINCT FROM (zone, address, driver, dedication, capacity) THEN
            head := next_revision();
            UPDATE workers SET
                zone = register_worker.zone, address = register_worker.address, driver = register_worker.driver,
                host_dedication_id = dedication, journal_id = journal, revision = head,
                capacity_shared_cpu_millicores = capacity[1],
        capacity_performance_cpu_millicores = capacity[2],
        capacity_memory_bytes = capacity[3],
        capacity_disk_bytes = capacity[4],
        capacity_gpus_a10 = capacity[5],
        capacity_gpus_l40s = capacity[6],
        capacity_gpus_a100_40gb = capacity[7],
        capacity_gpus_a100_80gb = capacity[8]
            WHERE workers.id = worker;
            PERFORM log_worker(worker, head);
        ELSIF w.journal_id <> journal THEN
            UPDATE workers SET journal_id = journal WHERE workers.id = worker;
        END IF;
    END IF;
    INSERT INTO journals (worker_id, journal_id) VALUES (worker, journal) ON CONFLICT DO NOTHING;
    INSERT INTO heartbeats (worker_id, at) VALUES (worker, clock_timestamp())
    ON CONFLICT (worker_id) DO UPDATE SET at = excluded.at;
    RETURN '{}';
END
$$

-- name: function_create_app
-- Put an app into the catalog. Answers done, repeated (the same app is there already) or name_taken.
CREATE FUNCTION create_app(
    app text, app_name text, organization text, network text, app_role text, home_cell text, at timestamptz
) RETURNS text
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    head bigint;
    existing apps%ROWTYPE;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    SELECT * INTO existing FROM apps WHERE apps.id = app;
    IF FOUND THEN
        RETURN CASE WHEN existing.name = app_name AND existing.deleted_at IS NULL THEN 'repeated' ELSE 'name_taken' END;
    END IF;
    IF EXISTS (SELECT FROM apps WHERE apps.name = app_name AND apps.deleted_at IS NULL) THEN
        RETURN 'name_taken';
    END IF;
    head := next_revision();
    INSERT INTO apps (id, name, organization_slug, network, app_role, home_cell, created_at, revision)
    VALUES (app, app_name, organization, network, app_role, home_cell, at, head);
    INSERT INTO log (revision, kind, id, app_id, record) SELECT head, 3, a.id, a.id, to_jsonb(a) FROM apps a WHERE a.id = app;
    RETURN 'done';
END
$$

-- name: function_delete_app
-- Take an app out of the catalog and ask for its machines to be destroyed; answers how many are, null without such an app.
-- Asked again, it answers how many still are. The ids of the events are `event_prefix` and a number of six digits, which
-- makes a ULID and keeps their order.
CREATE FUNCTION delete_app(app text, event_prefix text, event_source text, at timestamptz) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    head bigint;
    machine text;
    gone_at timestamptz;
    asked bigint := 0;
BEGIN
    SELECT revision INTO STRICT head FROM counter FOR UPDATE;
    SELECT deleted_at INTO gone_at FROM apps WHERE apps.id = app;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF gone_at IS NOT NULL THEN
        RETURN (SELECT count(*) FROM machines WHERE machines.app_id = app AND state = 9);
    END IF;
    head := head + 1;
    UPDATE apps SET deleted_at = delete_app.at, revision = head WHERE apps.id = app;
    INSERT INTO log (revision, kind, id, app_id, record) SELECT head, 3, a.id, a.id, to_jsonb(a) FROM apps a WHERE a.id = app;
    FOR machine IN
        SELECT machines.id FROM machines WHERE machines.app_id = app AND state NOT IN (9, 10) ORDER BY created_revision
    LOOP
        head := head + 1;
        asked := asked + 1;
        UPDATE machines SET state = 9, desired = 3, reason = '', updated_at = delete_app.at, revision = head
        WHERE machines.id = machine;
        INSERT INTO machine_events (machine_id, id, type, status, source, at)
        VALUES (machine, event_prefix || lpad(asked::text, 6, '0'), 'destroy', 'destroying', event_source, at);
        INSERT INTO log (
            revision, kind, id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id,
            worker_number, leaving_worker_id, reserved, leaving_reserved, host_status, reason, created_at, updated_at, details,
            event_id, event_type, event_status, event_source, event_at
        )
        SELECT m.revision, 1, m.id, m.app_id, m.app_name, m.name, m.region, m.state, m.desired, m.generation, m.instance_id,
            m.worker_id, m.worker_number, m.leaving_worker_id, m.reserved, m.leaving_reserved, m.host_status, m.reason,
            m.created_at, m.updated_at, m.details, event_prefix || lpad(asked::text, 6, '0'), 'destroy', 'destroying',
            event_source, at
        FROM machines m WHERE m.id = machine;
    END LOOP;
    UPDATE counter SET revision = head;
    PERFORM pg_notify('skerry_log', head::text);
    RETURN asked;
END
$$

-- name: function_set_worker_status
-- Say whether a worker can be reached, of it and of the machines on it; false without such a worker.
CREATE FUNCTION set_worker_status(duty_name text, wanted bigint, worker text, new_status smallint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    head bigint;
    first bigint;
    old_status smallint;
BEGIN
    SELECT revision INTO STRICT head FROM counter FOR UPDATE;
    PERFORM check_term(duty_name, wanted);
    SELECT status INTO old_status FROM workers WHERE id = worker;
    IF NOT FOUND OR old_status = new_status THEN
        RETURN old_status IS NOT NULL;
    END IF;
    head := head + 1;
    first := head;
    UPDATE workers SET status = new_status, revision = head WHERE id = worker;
    PERFORM log_worker(worker, head);
    WITH numbered AS (
        SELECT id, first + row_number() OVER (ORDER BY created_revision) AS next
        FROM machines WHERE worker_id = worker AND state <> 10
    ), changed AS (
        UPDATE machines m SET host_status = new_status, revision = next FROM numbered WHERE m.id = numbered.id RETURNING m.*
    )
    INSERT INTO log (
        revision, kind, id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id,
        worker_number, leaving_worker_id, reserved, leaving_reserved, host_status, reason, created_at, updated_at, details
    )
    SELECT revision, 1, id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id,
        worker_number, leaving_worker_id, reserved, leaving_reserved, host_status, reason, created_at, updated_at, details
    FROM changed;
    GET DIAGNOSTICS head = ROW_COUNT;
    head := first + head;
    UPDATE counter SET revision = head;
    PERFORM pg_notify('skerry_log', head::text);
    RETURN true;
END
$$

-- name: function_repair_reservations
-- Set what is reserved on every worker to what its machines and volumes need; answers the workers where that was something else.
CREATE FUNCTION repair_reservations(duty_name text, wanted bigint) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
    mended text;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    PERFORM check_term(duty_name, wanted);
    FOR mended IN
        WITH held AS (
            SELECT worker_id AS worker, reserved AS amounts FROM machines WHERE state <> 10
            UNION ALL
            SELECT leaving_worker_id, leaving_reserved FROM machines WHERE leaving_worker_id <> ''
            UNION ALL
            SELECT worker_id, disk(size_bytes) FROM volumes WHERE state <> 7
            UNION ALL
            SELECT worker_id, kept FROM volumes WHERE kept <> '{}'
        ), needed AS (
            SELECT w.id,
            coalesce(sum(amounts[1]), 0)::bigint AS shared_cpu_millicores,
            coalesce(sum(amounts[2]), 0)::bigint AS performance_cpu_millicores,
            coalesce(sum(amounts[3]), 0)::bigint AS memory_bytes,
            coalesce(sum(amounts[4]), 0)::bigint AS disk_bytes,
            coalesce(sum(amounts[5]), 0)::bigint AS gpus_a10,
            coalesce(sum(amounts[6]), 0)::bigint AS gpus_l40s,
            coalesce(sum(amounts[7]), 0)::bigint AS gpus_a100_40gb,
            coalesce(sum(amounts[8]), 0)::bigint AS gpus_a100_80gb
            FROM workers w LEFT JOIN held ON held.worker = w.id GROUP BY w.id
        )
        UPDATE workers SET
            reserved_shared_cpu_millicores = least(needed.shared_cpu_millicores, workers.capacity_shared_cpu_millicores),
            reserved_performance_cpu_millicores = least(needed.performance_cpu_millicores, workers.capacity_performance_cpu_millicores),
            reserved_memory_bytes = least(needed.memory_bytes, workers.capacity_memory_bytes),
            reserved_disk_bytes = least(needed.disk_bytes, workers.capacity_disk_bytes),
            reserved_gpus_a10 = least(needed.gpus_a10, workers.capacity_gpus_a10),
            reserved_gpus_l40s = least(needed.gpus_l40s, workers.capacity_gpus_l40s),
            reserved_gpus_a100_40gb = least(needed.gpus_a100_40gb, workers.capacity_gpus_a100_40gb),
            reserved_gpus_a100_80gb = least(needed.gpus_a100_80gb, workers.capacity_gpus_a100_80gb)
        FROM needed
        WHERE workers.id = needed.id
          AND (workers.reserved_shared_cpu_millicores,
               workers.reserved_performance_cpu_millicores,
               workers.reserved_memory_bytes,
               workers.reserved_disk_bytes,
               workers.reserved_gpus_a10,
               workers.reserved_gpus_l40s,
               workers.reserved_gpus_a100_40gb,
               workers.reserved_gpus_a100_80gb)
              IS DISTINCT FROM
              (least(needed.shared_cpu_millicores, workers.capacity_shared_cpu_millicores),
               least(needed.performance_cpu_millicores, workers.capacity_performance_cpu_millicores),
               least(needed.memory_bytes, workers.capacity_memory_bytes),
               least(needed.disk_bytes, workers.capacity_disk_bytes),
               least(needed.gpus_a10, workers.capacity_gpus_a10),
               least(needed.gpus_l40s, workers.capacity_gpus_l40s),
               least(needed.gpus_a100_40gb, workers.capacity_gpus_a100_40gb),
               least(needed.gpus_a100_80gb, workers.capacity_gpus_a100_80gb))
        RETURNING workers.id
    LOOP
        UPDATE workers SET revision = next_revision() WHERE id = mended;
        PERFORM log_worker(mended, (SELECT revision FROM workers WHERE id = mended));
        RETURN NEXT mended;
    END LOOP;
END
$$

-- name: function_purge_log
-- Forget entries of the log that are older than `age`, `most` at a time; answers how many.
CREATE FUNCTION purge_log(duty_name text, wanted bigint, age interval, most bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    low bigint;
    high bigint;
    middle bigint;
    oldest bigint;
    gone bigint;
BEGIN
    SELECT purged_revision, revision INTO STRICT low, high FROM counter FOR UPDATE;
    PERFORM check_term(duty_name, wanted);
    -- Entries are in the order of their time, so the last that is old enough is found by halving.
    oldest := low;
    high := least(high, low + most);
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        IF (SELECT at < clock_timestamp() - age FROM log WHERE revision = middle) THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    UPDATE counter SET purged_revision = low WHERE low > oldest;
    DELETE FROM log WHERE revision > oldest AND revision <= low;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$

-- name: function_purge_keys
-- Forget idempotency keys that are older than `age`, `most` at a time; answers how many.
CREATE FUNCTION purge_keys(duty_name text, wanted bigint, age interval, most bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    gone bigint;
BEGIN
    PERFORM check_term(duty_name, wanted);
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency_keys WHERE created_at < clock_timestamp() - age LIMIT most
    ));
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$

-- name: function_purge_machines
-- Forget destroyed machines that have not changed for `age` and are in no entry of the log; answers how many.
CREATE FUNCTION purge_machines(duty_name text, wanted bigint, age interval, most bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    gone bigint;
BEGIN
    PERFORM check_term(duty_name, wanted);
    WITH old AS (
        DELETE FROM machines WHERE id = ANY (ARRAY(
            SELECT id FROM machines
            WHERE state = 10 AND leaving_worker_id = '' AND updated_at < clock_timestamp() - age
              AND revision <= (SELECT purged_revision FROM counter)
            LIMIT most
        )) RETURNING id
    ), events AS (
        DELETE FROM machine_events USING old WHERE machine_id = old.id
    ), keys AS (
        DELETE FROM versions USING old WHERE machine_id = old.id
    )
    SELECT count(*) INTO gone FROM old;
    RETURN gone;
END
$$

-- Volumes and snapshots. As in functions.sql, each function is one transaction, and locks the row of `counter` first.
-- States of volumes: 1 creating, 2 created, 3 extending, 4 scheduling_destroy, 5 pending_destroy, 6 destroying, 7 destroyed.
-- States of snapshots: 1 creating, 2 created, 3 failed, 4 expired.

-- name: function_disk
-- A vector of amounts of nothing but disk.
CREATE FUNCTION disk(bytes bigint) RETURNS bigint[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY[0, 0, 0, bytes, 0, 0, 0, 0]::bigint[]
$$

-- name: function_log_volume
-- Note that a volume changes at `at`: give its row the next revision, and append it to the log.
CREATE FUNCTION log_volume(volume text, at timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    head bigint := next_revision();
BEGIN
    UPDATE volumes SET revision = head, updated_at = at WHERE id = volume;
    INSERT INTO log (revision, kind, id, app_id, record)
    SELECT head, 10, v.id, v.app_id, to_jsonb(v) - 'key' - 'fingerprint' FROM volumes v WHERE v.id = volume;
END
$$

-- name: function_log_snapshot
-- The same for a snapshot.
CREATE FUNCTION log_snapshot(snapshot text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    head bigint := next_revision();
BEGIN
    UPDATE snapshots SET revision = head WHERE id = snapshot;
    INSERT INTO log (revision, kind, id, app_id, record)
    SELECT head, 11, s.id, s.app_id, to_jsonb(s) FROM snapshots s WHERE s.id = snapshot;
END
$$

-- name: function_create_volume
-- Create a volume on the first candidate with room, in a zone that is not taken. Answers done, repeated (by id or key), and the
-- volume's id; other_request (the key stands for another one), no_app, no_source, source_not_ready, too_small, no_zone, no_room.
CREATE FUNCTION create_volume(
    volume text, app text, name text, region text, size bigint, encrypted boolean, fstype text, retention integer,
    backup boolean, dedication text, kept bigint[], candidates text[], unique_zone boolean, app_wide boolean, snapshot text,
    source text, key text, fingerprint bytea, at timestamptz, OUT outcome text, OUT volume_id text
)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    nothing CONSTANT bigint[] := '{0,0,0,0,0,0,0,0}';
    a apps%ROWTYPE;
    v volumes%ROWTYPE;
    s snapshots%ROWTYPE;
    taken_zones text[] := '{}';
    smallest bigint := 0;
    source_worker text := '';
    zone text;
    candidate text;
    taken room;
    in_another_zone boolean := false;
    need bigint[];
BEGIN
    PERFORM FROM counter FOR UPDATE;
    volume_id := volume;
    SELECT * INTO v FROM volumes WHERE volumes.id = volume OR (key <> '' AND volumes.app_id = app AND volumes.key = key);
    IF FOUND THEN
        volume_id := v.id;
        outcome := CASE WHEN v.id = volume OR v.fingerprint = fingerprint THEN 'repeated' ELSE 'other_request' END;
        RETURN;
    END IF;
    SELECT * INTO a FROM apps WHERE apps.id = app AND apps.deleted_at IS NULL;
    IF NOT FOUND THEN
        outcome := 'no_app';
        RETURN;
    END IF;
    IF source <> '' THEN
        SELECT * INTO v FROM volumes WHERE volumes.id = source AND volumes.app_id = app;
        IF NOT FOUND OR v.state > 3 THEN
            outcome := 'no_source';
        ELSIF v.state = 1 THEN
            outcome := 'source_not_ready';
        END IF;
        source_worker := v.worker_id;
        smallest := v.size_bytes;
    ELSIF snapshot <> '' THEN
        SELECT * INTO s FROM snapshots WHERE snapshots.id = snapshot AND snapshots.app_id = app;
        IF NOT FOUND OR s.state > 2 THEN
            outcome := 'no_source';
        ELSIF s.state = 1 THEN
            outcome := 'source_not_ready';
        END IF;
        source_worker := s.worker_id;
        smallest := s.volume_size_bytes;
    END IF;
    size := CASE WHEN size = 0 THEN smallest ELSE size END;
    IF outcome IS NULL AND size < smallest THEN
        outcome := 'too_small';
    END IF;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;

    IF unique_zone OR app_wide THEN
        taken_zones := ARRAY(
            SELECT DISTINCT volumes.zone FROM volumes
            WHERE volumes.app_id = app AND volumes.state <= 3
              AND (app_wide OR volumes.name = name OR volumes.id = source)
        );
    END IF;
    need := kept;
    need[4] := need[4] + size;
    FOREACH candidate IN ARRAY candidates LOOP
        SELECT workers.zone INTO zone FROM workers WHERE workers.id = candidate;
        CONTINUE WHEN NOT FOUND OR zone = ANY (taken_zones);
        in_another_zone := true;
        taken := take_room(candidate, need, nothing, true);
        EXIT WHEN taken.number IS NOT NULL;
    END LOOP;
    IF taken.number IS NULL THEN
        outcome := CASE
            WHEN in_another_zone OR cardinality(taken_zones) = 0 OR cardinality(candidates) = 0 THEN 'no_room'
            ELSE 'no_zone'
        END;
        RETURN;
    END IF;

    INSERT INTO volumes (
        id, app_id, app_name, name, region, state, size_bytes, worker_id, zone, encrypted, fstype, snapshot_retention_days,
        auto_backup_enabled, host_dedication_id, kept, source_snapshot_id, source_volume_id, source_worker_id, key, fingerprint,
        created_at, updated_at, revision
    ) VALUES (
        volume, app, a.name, name, region, 1, size, candidate, zone, encrypted, fstype, retention, backup, dedication,
        CASE WHEN kept = nothing THEN '{}' ELSE kept END, CASE WHEN source = '' THEN snapshot ELSE '' END, source, source_worker,
        key, fingerprint, at, at, 0
    );
    PERFORM log_volume(volume, at);
    outcome := 'done';
END
$$

-- name: function_update_volume
-- Change how snapshots of a volume are kept; null leaves a setting as it is. Answers done, missing or wrong_state.
CREATE FUNCTION update_volume(volume text, app text, retention integer, backup boolean, at timestamptz) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    SELECT * INTO v FROM volumes WHERE id = volume AND app IN ('', app_id);
    IF NOT FOUND THEN
        RETURN 'missing';
    ELSIF v.state > 3 THEN
        RETURN 'wrong_state';
    END IF;
    UPDATE volumes SET
        snapshot_retention_days = coalesce(retention, snapshot_retention_days),
        auto_backup_enabled = coalesce(backup, auto_backup_enabled)
    WHERE id = volume;
    PERFORM log_volume(volume, at);
    RETURN 'done';
END
$$

-- name: function_delete_volume
-- Ask for a volume to be destroyed. Answers done (also when that was asked before), missing, attached (to a machine) or copied
-- (by a volume that is not there yet).
CREATE FUNCTION delete_volume(volume text, app text, at timestamptz) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    SELECT * INTO v FROM volumes WHERE id = volume AND app IN ('', app_id);
    IF NOT FOUND THEN
        RETURN 'missing';
    ELSIF v.state > 3 THEN
        RETURN 'done';
    ELSIF v.attached_machine_id <> '' THEN
        RETURN 'attached';
    ELSIF EXISTS (SELECT FROM volumes WHERE source_volume_id = volume AND state = 1) THEN
        RETURN 'copied';
    END IF;
    PERFORM abandon_volume(volume, at);
    RETURN 'done';
END
$$

-- name: function_abandon_volume
-- Let a volume that nobody has go: its worker is to destroy it, and nothing is kept for a machine any more.
CREATE FUNCTION abandon_volume(volume text, at timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
BEGIN
    SELECT * INTO STRICT v FROM volumes WHERE id = volume;
    IF cardinality(v.kept) > 0 THEN
        PERFORM give_back(v.worker_id, v.kept);
    END IF;
    UPDATE volumes SET state = 5, kept = '{}', reason = '' WHERE id = volume;
    PERFORM log_volume(volume, at);
END
$$

-- name: function_extend_volume
-- Reserve more disk for a volume. Answers done (also when it has that size), missing, wrong_state, smaller or no_room.
CREATE FUNCTION extend_volume(volume text, app text, size bigint, at timestamptz) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
    taken room;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    SELECT * INTO v FROM volumes WHERE id = volume AND app IN ('', app_id);
    IF NOT FOUND THEN
        RETURN 'missing';
    ELSIF v.state > 3 THEN
        RETURN 'wrong_state';
    ELSIF size < v.size_bytes THEN
        RETURN 'smaller';
    ELSIF size = v.size_bytes THEN
        RETURN 'done';
    END IF;
    taken := take_room(v.worker_id, disk(size), disk(v.size_bytes), false);
    IF taken.number IS NULL THEN
        RETURN 'no_room';
    END IF;
    UPDATE volumes SET size_bytes = size, state = CASE WHEN state = 1 THEN 1 ELSE 3 END WHERE id = volume;
    PERFORM log_volume(volume, at);
    RETURN 'done';
END
$$

-- name: function_create_snapshot
-- Ask for a snapshot. Answers done, repeated (by id), missing (the volume) or wrong_state.
CREATE FUNCTION create_snapshot(snapshot text, volume text, app text, at timestamptz) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    IF EXISTS (SELECT FROM snapshots WHERE id = snapshot) THEN
        RETURN 'repeated';
    END IF;
    SELECT * INTO v FROM volumes WHERE id = volume AND app IN ('', app_id);
    IF NOT FOUND THEN
        RETURN 'missing';
    ELSIF v.state NOT IN (2, 3) THEN
        RETURN 'wrong_state';
    END IF;
    INSERT INTO snapshots (id, volume_id, app_id, worker_id, state, volume_size_bytes, retention_days, created_at, revision)
    VALUES (snapshot, volume, v.app_id, v.worker_id, 1, v.size_bytes, v.snapshot_retention_days, at, 0);
    PERFORM log_snapshot(snapshot);
    RETURN 'done';
END
$$

-- name: function_report_volume
-- Take over what a worker tells of a volume on its disk; what does not fit the present state changes nothing.
CREATE FUNCTION report_volume(
    worker text, volume text, seen smallint, size bigint, why text, at timestamptz
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
    next smallint;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    SELECT * INTO v FROM volumes WHERE id = volume AND worker_id = worker;
    next := CASE
        WHEN seen = 2 AND v.state IN (1, 3) THEN CASE WHEN size >= v.size_bytes THEN 2 ELSE 3 END
        WHEN seen = 6 AND v.state = 5 THEN 6
        WHEN seen = 7 AND v.state IN (5, 6) THEN 7
        ELSE v.state
    END;
    IF v.id IS NULL OR (next = v.state AND (why = v.reason OR v.state > 3)) THEN
        RETURN;
    END IF;
    IF next = 7 THEN
        PERFORM give_back(v.worker_id, disk(v.size_bytes));
    END IF;
    UPDATE volumes SET state = next, reason = why WHERE id = volume;
    PERFORM log_volume(volume, at);
END
$$

-- name: function_report_snapshot
-- The same for a snapshot. It expires once its time is over, and as long as no volume begins with it.
CREATE FUNCTION report_snapshot(
    worker text, snapshot text, seen smallint, size bigint, content text, why text, at timestamptz
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    s snapshots%ROWTYPE;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    SELECT * INTO s FROM snapshots WHERE id = snapshot AND worker_id = worker;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF seen IN (2, 3) AND s.state = 1 THEN
        UPDATE snapshots SET state = seen, size_bytes = size, digest = content, reason = why WHERE id = snapshot;
        PERFORM log_snapshot(snapshot);
    ELSIF seen = 4 AND s.state IN (2, 3)
        AND at >= s.created_at + s.retention_days * interval '1 day'
        AND NOT EXISTS (SELECT FROM volumes WHERE source_snapshot_id = snapshot AND state = 1)
    THEN
        UPDATE snapshots SET state = 4 WHERE id = snapshot;
        PERFORM log_snapshot(snapshot);
    END IF;
END
$$

-- name: function_commit_at_volume
-- Create a machine that is to have a volume, on the volume's worker, in the room that is kept there for it. The outcome is that of
-- commit_batch_under_plan, or no_volume, volume_taken (by the machine of the outcome), volume_elsewhere (on the worker of the
-- outcome). What was done before, by the same ids or key, is answered as there.
CREATE FUNCTION commit_at_volume(c new_machine, epoch bigint, volume text) RETURNS batch_outcome
LANGUAGE plpgsql AS $$
DECLARE
    nothing CONSTANT bigint[] := '{0,0,0,0,0,0,0,0}';
    v volumes%ROWTYPE;
    o batch_outcome;
    known boolean;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    known := EXISTS (SELECT FROM machines WHERE id = c.id)
        OR EXISTS (SELECT FROM idempotency_keys WHERE app_id = c.app_id AND key = c.idempotency_key AND key <> '');
    IF NOT known THEN
        SELECT * INTO v FROM volumes WHERE id = volume AND app_id = c.app_id;
        o.machine_id := c.id;
        IF NOT FOUND OR v.state > 3 THEN
            o.outcome := 'no_volume';
            RETURN o;
        ELSIF v.attached_machine_id <> '' THEN
            o.outcome := 'volume_taken';
            o.machine_id := v.attached_machine_id;
            RETURN o;
        ELSIF v.worker_id <> ALL (c.candidates) THEN
            o.outcome := 'volume_elsewhere';
            o.worker_id := v.worker_id;
            RETURN o;
        END IF;
        c.candidates := ARRAY[v.worker_id];
        IF cardinality(v.kept) > 0 THEN
            PERFORM give_back(v.worker_id, v.kept);
        END IF;
    END IF;
    SELECT * INTO STRICT o FROM commit_batch_under_plan(ARRAY[c], '{}', ARRAY[epoch], '{}');
    IF o.outcome = 'done' THEN
        UPDATE volumes SET attached_machine_id = c.id, kept = '{}' WHERE id = volume;
        PERFORM log_volume(volume, c.at);
    ELSIF NOT known AND cardinality(v.kept) > 0 THEN
        PERFORM take_room(v.worker_id, v.kept, nothing, false);
    END IF;
    RETURN o;
END
$$

-- name: function_detach_volumes
-- A machine is destroyed: whoever destroyed it, its volume is free, or goes with it where that was asked for.
CREATE FUNCTION detach_volumes() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
BEGIN
    FOR v IN SELECT * FROM volumes WHERE attached_machine_id = NEW.id AND attached_machine_id <> '' LOOP
        UPDATE volumes SET attached_machine_id = '' WHERE id = v.id;
        IF v.state = 4 THEN
            PERFORM abandon_volume(v.id, NEW.updated_at);
        ELSE
            PERFORM log_volume(v.id, NEW.updated_at);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$

-- name: trigger_detach_volumes
-- Deferred to the end of the transaction: by then it has numbered its own changes.
CREATE CONSTRAINT TRIGGER detach_volumes AFTER UPDATE OF state ON machines
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.state = 10 AND OLD.state <> 10)
EXECUTE FUNCTION detach_volumes()

-- name: function_abandon_volumes
-- An app is deleted: its volumes are to be destroyed, those that machines have after these.
CREATE FUNCTION abandon_volumes() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    v volumes%ROWTYPE;
BEGIN
    FOR v IN SELECT * FROM volumes WHERE app_id = NEW.id AND state <= 3 ORDER BY created_at, id LOOP
        IF v.attached_machine_id = '' THEN
            PERFORM abandon_volume(v.id, NEW.deleted_at);
        ELSE
            UPDATE volumes SET state = 4 WHERE id = v.id;
            PERFORM log_volume(v.id, NEW.deleted_at);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$

-- name: trigger_abandon_volumes
-- As above.
CREATE CONSTRAINT TRIGGER abandon_volumes AFTER UPDATE OF deleted_at ON apps
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL)
EXECUTE FUNCTION abandon_volumes()

-- name: function_purge_volumes
-- Forget snapshots that have expired, and destroyed volumes without any, that have not changed for `age` and are in no entry of the
-- log; answers how many volumes.
CREATE FUNCTION purge_volumes(duty_name text, wanted bigint, age interval, most bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    purged bigint;
    gone bigint;
BEGIN
    PERFORM check_term(duty_name, wanted);
    SELECT purged_revision INTO STRICT purged FROM counter;
    DELETE FROM snapshots WHERE id = ANY (ARRAY(
        SELECT id FROM snapshots WHERE state = 4 AND revision <= purged AND created_at < clock_timestamp() - age LIMIT most
    ));
    DELETE FROM volumes WHERE id = ANY (ARRAY(
        SELECT id FROM volumes v
        WHERE state = 7 AND revision <= purged AND updated_at < clock_timestamp() - age
          AND NOT EXISTS (SELECT FROM snapshots s WHERE s.volume_id = v.id)
        LIMIT most
    ));
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$

-- The plan as writes see it. As in functions.sql, each function is one transaction, and what concerns the log locks the row
-- of `counter` first.

-- name: function_commit_batch_under_plan
-- As commit_batch, but refuse machines and steps that were converted under another epoch than the present one: their
-- outcome is plan_moved, with the present epoch as its revision. Epochs are in the order of the machines and of the steps;
-- 0 is not checked. What was done before, by the same ids or key, is answered as commit_batch does.
CREATE FUNCTION commit_batch_under_plan(
    creates new_machine[], steps machine_step[], create_epochs bigint[], step_epochs bigint[]
) RETURNS SETOF batch_outcome
LANGUAGE plpgsql AS $$
DECLARE
    present bigint;
    c new_machine;
    s machine_step;
    o batch_outcome;
    moved batch_outcome[] := '{}';
    moved_units integer[] := '{}';
    good_creates new_machine[] := '{}';
    good_steps machine_step[] := '{}';
    refused boolean[] := '{}';
    good_outcomes batch_outcome[];
    at_good integer := 0;
BEGIN
    SELECT plan_epoch INTO STRICT present FROM counter FOR UPDATE;
    IF NOT EXISTS (SELECT FROM unnest(create_epochs || step_epochs) AS epoch WHERE epoch NOT IN (0, present)) THEN
        RETURN QUERY SELECT * FROM commit_batch(creates, steps);
        RETURN;
    END IF;

    FOR number IN 1 .. coalesce(cardinality(creates), 0) LOOP
        c := creates[number];
        refused[number] := create_epochs[number] NOT IN (0, present)
            AND NOT EXISTS (SELECT FROM versions WHERE machine_id = c.id AND instance_id = c.instance_id)
            AND NOT EXISTS (
                SELECT FROM idempotency_keys k JOIN machines ON machines.id = k.machine_id
                WHERE c.idempotency_key <> '' AND k.app_id = c.app_id AND k.key = c.idempotency_key
            );
        IF NOT refused[number] THEN
            good_creates := good_creates || c;
        END IF;
    END LOOP;
    FOR number IN 1 .. coalesce(cardinality(steps), 0) LOOP
        s := steps[number];
        IF step_epochs[number] NOT IN (0, present)
            AND NOT EXISTS (SELECT FROM versions WHERE machine_id = s.machine_id AND instance_id = s.instance_id)
        THEN
            moved_units := moved_units || s.unit;
        END IF;
        refused := refused || (s.unit = ANY (moved_units));
        IF NOT s.unit = ANY (moved_units) THEN
            good_steps := good_steps || s;
        END IF;
    END LOOP;
    good_outcomes := ARRAY(SELECT ROW(b.*)::batch_outcome FROM commit_batch(good_creates, good_steps) b);
    FOR number IN 1 .. cardinality(refused) LOOP
        IF refused[number] THEN
            o := NULL;
            o.outcome := 'plan_moved';
            o.revision := present;
            RETURN NEXT o;
        ELSE
            at_good := at_good + 1;
            o := good_outcomes[at_good];
            RETURN NEXT o;
        END IF;
    END LOOP;
END
$$

-- name: function_make_plan
-- Make the first plan, unless there is one; answers whether there was none. Where machines had been written before there
-- were plans it is `grown`, else `fresh`.
CREATE FUNCTION make_plan(fresh jsonb, grown jsonb) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    head bigint;
    document jsonb;
BEGIN
    SELECT revision INTO STRICT head FROM counter FOR UPDATE;
    IF EXISTS (SELECT FROM plan) THEN
        RETURN false;
    END IF;
    document := CASE WHEN head = 0 THEN fresh ELSE grown END;
    head := next_revision();
    UPDATE counter SET plan_epoch = (document ->> 'epoch')::bigint;
    INSERT INTO plan (document, revision) VALUES (document, head);
    INSERT INTO log (revision, kind, id, record) VALUES (head, 4, 'plan', document);
    RETURN true;
END
$$

-- name: function_change_plan
-- Put `wanted`, with its entries that changed, in the place of the plan of epoch `expected`. Answers null, or the present epoch
-- when that is another one: nothing is written then.
CREATE FUNCTION change_plan(
    expected bigint, wanted jsonb, befores jsonb[], afters jsonb[], who text, why text, evidence text, at timestamptz
) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    present bigint;
    head bigint;
BEGIN
    SELECT plan_epoch INTO STRICT present FROM counter FOR UPDATE;
    IF present <> expected THEN
        RETURN present;
    END IF;
    present := (wanted ->> 'epoch')::bigint;
    head := next_revision();
    UPDATE counter SET plan_epoch = present;
    UPDATE plan SET document = wanted, revision = head;
    INSERT INTO plan_changes (epoch, part, at, who, why, before, after, evidence)
    SELECT present, changed.after ->> 'part', at, who, why, changed.before, changed.after, evidence
    FROM unnest(befores, afters) AS changed (before, after);
    INSERT INTO log (revision, kind, id, record) VALUES (head, 4, 'plan', wanted);
    RETURN NULL;
END
$$

-- name: function_present_since
-- Epoch that a part's mode or a version last changed at; null without such a part.
CREATE FUNCTION present_since(part text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT (entry ->> 'since_epoch')::bigint
    FROM plan, jsonb_array_elements(plan.document -> 'parts') AS entry WHERE entry ->> 'part' = present_since.part
$$

-- name: function_record_comparisons
-- Count comparisons of a part and keep what differed; those of another epoch than the part's are not counted.
CREATE FUNCTION record_comparisons(
    part text, since bigint, hashes bytea[], documents bytea[], different_apps text[], at timestamptz,
    most_inputs bigint, most_apps bigint, most_differences bigint
) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    e evidence%ROWTYPE;
    new_inputs bigint;
BEGIN
    INSERT INTO evidence (part, since_epoch) VALUES (part, since) ON CONFLICT DO NOTHING;
    SELECT * INTO STRICT e FROM evidence WHERE evidence.part = part FOR UPDATE;
    IF since IS DISTINCT FROM present_since(part) OR since < e.since_epoch THEN
        RETURN;
    END IF;
    IF since > e.since_epoch THEN
        DELETE FROM compared_inputs i WHERE i.part = part;
        e.since_epoch := since;
        e.compared := 0;
        e.distinct_inputs := 0;
        e.different := 0;
        e.apps := '{}';
    END IF;
    INSERT INTO compared_inputs (part, input_hash)
    SELECT part, hash FROM (SELECT DISTINCT hash FROM unnest(hashes) AS hash) given
    WHERE NOT EXISTS (SELECT FROM compared_inputs i WHERE i.part = part AND i.input_hash = hash)
    LIMIT greatest(0, most_inputs - e.distinct_inputs);
    GET DIAGNOSTICS new_inputs = ROW_COUNT;
    UPDATE evidence SET
        since_epoch = since,
        compared = e.compared + cardinality(hashes),
        distinct_inputs = e.distinct_inputs + new_inputs,
        different = e.different + cardinality(documents),
        apps = ARRAY(
            SELECT DISTINCT app FROM unnest(e.apps || different_apps) AS app ORDER BY app LIMIT most_apps
        )
    WHERE evidence.part = part;
    IF cardinality(documents) > 0 THEN
        INSERT INTO differences (part, at, document)
        SELECT part, at, given.document FROM unnest(documents) WITH ORDINALITY AS given (document, place)
        ORDER BY place;
        DELETE FROM differences d WHERE d.part = part AND d.id <= (
            SELECT id FROM differences o WHERE o.part = part ORDER BY id DESC OFFSET most_differences LIMIT 1
        );
    END IF;
END
$$

-- name: function_keep_conversions
-- Keep conversions; when there are too many, a twentieth of them goes, those first that were not used for longest.
CREATE FUNCTION keep_conversions(parts text[], hashes bytea[], numbers bigint[], specs bytea[], most bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    new bigint;
    gone bigint;
    total bigint;
BEGIN
    -- Whoever keeps holds this row, so no two insert the same rows in two orders.
    SELECT number INTO STRICT total FROM conversions_count FOR UPDATE;
    INSERT INTO conversions (part, input_hash, version, spec)
    SELECT * FROM unnest(parts, hashes, numbers, specs) ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS new = ROW_COUNT;
    total := total + new;
    IF total > most THEN
        DELETE FROM conversions c USING (
            SELECT part, input_hash, version FROM conversions ORDER BY used_at
            LIMIT total - most + most / 20 FOR UPDATE SKIP LOCKED
        ) old WHERE (c.part, c.input_hash, c.version) = (old.part, old.input_hash, old.version);
        GET DIAGNOSTICS gone = ROW_COUNT;
        total := total - gone;
    END IF;
    UPDATE conversions_count SET number = total WHERE new > 0;
END
$$

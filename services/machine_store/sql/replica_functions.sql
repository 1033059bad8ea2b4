-- The catalog as a replica of the centre's. As in functions.sql, each function is one transaction, and what concerns the log
-- locks the row of `counter` first.

-- name: type_catalog_outcome
-- What became of one record that did not simply stay or change: kept_local (an app that the region has stays, for its
-- machines), replaced_local (one without machines made place), other_position (nothing was written; the id is the catalog's
-- position).
CREATE TYPE catalog_outcome AS (
    kind smallint,
    id text,
    outcome text
)

-- name: function_secrets_version
-- The version in a record of an app's secrets.
CREATE FUNCTION secrets_version(document jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce((document ->> 'version')::bigint, 0)
$$

-- name: function_secrets_history
-- What an app's secrets were at the versions before that of `newer`, newest first, without values; ten at most.
CREATE FUNCTION secrets_history(older jsonb, newer jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_agg(h.version ORDER BY secrets_version(h.version) DESC), '[]')
    FROM (
        SELECT v.version
        FROM jsonb_array_elements(
            jsonb_build_array(
                jsonb_build_object(
                    'version', older -> 'version',
                    'secrets', coalesce(
                        (SELECT jsonb_agg(s - 'sealed' - 'key_id') FROM jsonb_array_elements(older -> 'secrets') s), '[]'
                    )
                )
            ) || coalesce(older -> 'history', '[]')
        ) v (version)
        WHERE secrets_version(v.version) < secrets_version(newer)
        ORDER BY secrets_version(v.version) DESC
        LIMIT 10
    ) h
$$

-- name: function_put_catalog
-- Bring records of the centre into the catalog, logging those that change it; the counter's row is locked already.
-- only_new leaves alone what the catalog has or had. Answers the outcomes that are worth telling.
CREATE FUNCTION put_catalog(
    kinds smallint[], ids text[], documents jsonb[], prefixes text[], only_new boolean, at timestamptz
) RETURNS SETOF catalog_outcome
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    app CONSTANT smallint := 3;
    secrets CONSTANT smallint := 7;
    d jsonb;
    gone boolean;
    a apps%ROWTYPE;
    r catalog_records%ROWTYPE;
    known boolean;
    other text;
    o catalog_outcome;
    head bigint;
    first bigint;
BEGIN
    SELECT revision INTO STRICT head FROM counter;
    first := head;
    FOR number IN 1 .. coalesce(cardinality(kinds), 0) LOOP
        d := documents[number];
        gone := coalesce((d ->> 'deleted')::boolean, false);
        o := (kinds[number], ids[number], NULL);
        IF kinds[number] = app THEN
            SELECT * INTO a FROM apps WHERE apps.id = ids[number];
            known := FOUND;
            IF gone THEN
                CONTINUE WHEN NOT known OR a.deleted_at IS NOT NULL OR only_new;
                -- The centre cannot take away what it never had, and somebody uses it.
                IF NOT a.from_centre AND EXISTS (SELECT FROM machines m WHERE m.app_id = a.id AND m.state <> 10) THEN
                    o.outcome := 'kept_local';
                    RETURN NEXT o;
                    CONTINUE;
                END IF;
                UPDATE counter SET revision = head;
                PERFORM delete_app(a.id, prefixes[number], 'flyd', at);
                SELECT revision INTO STRICT head FROM counter;
                CONTINUE;
            END IF;
            IF known AND only_new THEN
                UPDATE apps SET from_centre = true WHERE apps.id = a.id AND NOT from_centre;
                CONTINUE;
            END IF;
            IF known AND a.deleted_at IS NULL AND (
                a.name, a.organization_slug, a.network, a.app_role, a.home_cell
            ) = (
                d ->> 'name', coalesce(d ->> 'organization_slug', ''), coalesce(d ->> 'network', ''),
                coalesce(d ->> 'app_role', ''), coalesce(d ->> 'home_cell', '')
            ) AND a.internal_numeric_id = coalesce((d ->> 'internal_numeric_id')::integer, a.internal_numeric_id)
            AND a.created_at = coalesce((d ->> 'created_at')::timestamptz, a.created_at) THEN
                UPDATE apps SET from_centre = true WHERE apps.id = a.id AND NOT from_centre;
                CONTINUE;
            END IF;
            -- Another app of that name makes place, unless somebody uses it.
            SELECT x.id INTO other FROM apps x
            WHERE x.name = d ->> 'name' AND x.id <> ids[number] AND x.deleted_at IS NULL;
            IF FOUND THEN
                IF EXISTS (SELECT FROM machines m WHERE m.app_id = other AND m.state <> 10) THEN
                    o.outcome := 'kept_local';
                    RETURN NEXT o;
                    CONTINUE;
                END IF;
                UPDATE counter SET revision = head;
                PERFORM delete_app(other, prefixes[number], 'flyd', at);
                SELECT revision INTO STRICT head FROM counter;
                o.outcome := 'replaced_local';
                RETURN NEXT o;
            END IF;
            head := head + 1;
            INSERT INTO apps (
                id, name, organization_slug, internal_numeric_id, network, app_role, home_cell, created_at, revision, from_centre
            ) VALUES (
                ids[number], d ->> 'name', coalesce(d ->> 'organization_slug', ''),
                coalesce(
                    (d ->> 'internal_numeric_id')::integer, a.internal_numeric_id,
                    nextval(pg_get_serial_sequence('apps', 'internal_numeric_id'))::integer
                ),
                coalesce(d ->> 'network', ''), coalesce(d ->> 'app_role', ''), coalesce(d ->> 'home_cell', ''),
                coalesce((d ->> 'created_at')::timestamptz, a.created_at, at), head, true
            )
            ON CONFLICT ON CONSTRAINT apps_pkey DO UPDATE SET
                name = excluded.name, organization_slug = excluded.organization_slug,
                internal_numeric_id = excluded.internal_numeric_id, network = excluded.network,
                app_role = excluded.app_role, home_cell = excluded.home_cell, created_at = excluded.created_at,
                deleted_at = NULL, revision = excluded.revision, from_centre = true;
            INSERT INTO log (revision, kind, id, app_id, record)
            SELECT head, app, x.id, x.id, to_jsonb(x) FROM apps x WHERE x.id = ids[number];
        ELSE
            SELECT * INTO r FROM catalog_records c WHERE c.kind = kinds[number] AND c.id = ids[number];
            known := FOUND;
            CONTINUE WHEN known AND only_new AND (kinds[number] <> secrets OR r.deleted);
            CONTINUE WHEN gone AND (NOT known OR r.deleted OR only_new);
            CONTINUE WHEN known AND NOT gone AND NOT r.deleted AND r.document = d;
            IF kinds[number] = secrets AND gone THEN
                d := jsonb_build_object('app_id', ids[number], 'deleted', true);
            ELSIF kinds[number] = secrets THEN
                -- However it came, a version is newer than another or it is not.
                CONTINUE WHEN known AND NOT r.deleted
                    AND secrets_version(d) <= secrets_version(r.document)
                    AND coalesce((d ->> 'replaces_version')::bigint, -1) <> secrets_version(r.document);
                d := d - 'replaces_version' || jsonb_build_object(
                    'history', CASE WHEN known AND NOT r.deleted THEN secrets_history(r.document, d) ELSE '[]' END
                );
            ELSIF gone THEN
                -- The last that was known of it: whoever follows may know it by another of its names.
                d := (r.document || d);
            END IF;
            head := head + 1;
            INSERT INTO catalog_records (kind, id, document, deleted, revision)
            VALUES (kinds[number], ids[number], d, gone, head)
            ON CONFLICT ON CONSTRAINT catalog_records_pkey DO UPDATE SET
                document = excluded.document, deleted = excluded.deleted, revision = excluded.revision;
            INSERT INTO log (revision, kind, id, record) VALUES (head, kinds[number], ids[number], d - 'history');
        END IF;
    END LOOP;
    IF head <> first THEN
        UPDATE counter SET revision = head;
        PERFORM pg_notify('skerry_log', head::text);
    END IF;
END
$$

-- name: function_apply_catalog_changes
-- Bring changes of the centre's feed into the catalog, under the lead of `duty_name`, if the catalog is at `after_position`.
-- The first row has the number of records that changed as its id and no outcome.
CREATE FUNCTION apply_catalog_changes(
    duty_name text, wanted bigint, after_position bigint, new_position bigint,
    kinds smallint[], ids text[], documents jsonb[], prefixes text[], at timestamptz
) RETURNS SETOF catalog_outcome
LANGUAGE plpgsql AS $$
DECLARE
    head bigint;
    present bigint;
    outcomes catalog_outcome[];
BEGIN
    SELECT revision INTO STRICT head FROM counter FOR UPDATE;
    PERFORM check_term(duty_name, wanted);
    SELECT position INTO STRICT present FROM catalog_state;
    IF present <> after_position THEN
        RETURN NEXT (NULL, present::text, 'other_position')::catalog_outcome;
        RETURN;
    END IF;
    outcomes := ARRAY(
        SELECT ROW(p.*)::catalog_outcome FROM put_catalog(kinds, ids, documents, prefixes, false, at) p
    );
    UPDATE catalog_state SET position = new_position, changed_at = at;
    RETURN NEXT (
        NULL, (SELECT count(*) FROM log WHERE log.revision > head AND log.kind IN (3, 5, 6, 7, 8, 9))::text, NULL
    )::catalog_outcome;
    RETURN QUERY SELECT * FROM unnest(outcomes);
END
$$

-- name: function_put_catalog_records
-- Bring what the centre answered into the catalog. The first row has the newest revision as its id and no outcome.
CREATE FUNCTION put_catalog_records(
    kinds smallint[], ids text[], documents jsonb[], prefixes text[], at timestamptz
) RETURNS SETOF catalog_outcome
LANGUAGE plpgsql AS $$
DECLARE
    outcomes catalog_outcome[];
BEGIN
    PERFORM FROM counter FOR UPDATE;
    outcomes := ARRAY(
        SELECT ROW(p.*)::catalog_outcome FROM put_catalog(kinds, ids, documents, prefixes, true, at) p
    );
    RETURN NEXT (NULL, (SELECT revision FROM counter)::text, NULL)::catalog_outcome;
    RETURN QUERY SELECT * FROM unnest(outcomes);
END
$$

-- name: function_set_cursor
-- Move the cursor of a duty under its lead.
CREATE FUNCTION set_cursor(duty_name text, wanted bigint, new_value bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM check_term(duty_name, wanted);
    INSERT INTO cursors (duty, value) VALUES (duty_name, new_value)
    ON CONFLICT (duty) DO UPDATE SET value = excluded.value;
END
$$

-- Releases. As in functions.sql, each function is one transaction, and locks the row of `counter` first: so numbers are given in
-- the order of commits, and none twice.

-- name: function_create_release
-- Take a release under the app's next number. Answers done, repeated (by id or key), no_app or other_request (the key stands for
-- another one), and the id of the release.
CREATE FUNCTION create_release(
    release text, app text, strategy text, made_by text, image_ref text, definition text, key text, at timestamptz,
    OUT outcome text, OUT release_id text
)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    head bigint;
    next_version bigint;
    r releases%ROWTYPE;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    release_id := release;
    SELECT * INTO r FROM releases WHERE releases.id = release OR (key <> '' AND releases.app_id = app AND releases.key = key);
    IF FOUND THEN
        release_id := r.id;
        outcome := CASE
            WHEN (r.app_id, r.strategy, r.made_by, r.image_ref, r.definition) = (app, strategy, made_by, image_ref, definition)
            THEN 'repeated' ELSE 'other_request'
        END;
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM apps WHERE apps.id = app AND apps.deleted_at IS NULL) THEN
        outcome := 'no_app';
        RETURN;
    END IF;
    SELECT coalesce(max(releases.version), 0) + 1 INTO next_version FROM releases WHERE releases.app_id = app;
    head := next_revision();
    INSERT INTO releases (
        id, app_id, version, status, strategy, made_by, image_ref, definition, metadata, key, created_at, updated_at, revision
    ) VALUES (release, app, next_version, 1, strategy, made_by, image_ref, definition, '', key, at, at, head)
    RETURNING * INTO r;
    INSERT INTO log (revision, kind, id, app_id, record) VALUES (head, 12, r.id, r.app_id, to_jsonb(r));
    outcome := 'done';
END
$$

-- name: function_update_release
-- Note how far a release is, unless it has changed since `expected`; answers whether it had not. Empty metadata leave what is there.
CREATE FUNCTION update_release(release text, expected bigint, status integer, metadata text, at timestamptz) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    head bigint;
    r releases%ROWTYPE;
BEGIN
    PERFORM FROM counter FOR UPDATE;
    IF NOT EXISTS (SELECT FROM releases WHERE releases.id = release AND releases.revision = expected) THEN
        RETURN false;
    END IF;
    head := next_revision();
    UPDATE releases SET
        status = update_release.status,
        metadata = CASE WHEN update_release.metadata = '' THEN releases.metadata ELSE update_release.metadata END,
        updated_at = at,
        revision = head
    WHERE releases.id = release
    RETURNING releases.* INTO r;
    INSERT INTO log (revision, kind, id, app_id, record) VALUES (head, 12, r.id, r.app_id, to_jsonb(r));
    RETURN true;
END
$$

-- name: newest_token_key
SELECT id, public_key, sealed FROM token_keys WHERE retired_at IS NULL ORDER BY id DESC LIMIT 1

-- name: next_token_key_id
SELECT coalesce(max(id), 0) + 1 AS id FROM token_keys

-- name: insert_token_key
INSERT INTO token_keys (id, public_key, sealed, created_at) VALUES ($1, $2, $3, $4)

-- name: token_keys
SELECT id, public_key, created_at FROM token_keys WHERE retired_at IS NULL ORDER BY id DESC

-- name: retire_token_key
UPDATE token_keys SET retired_at = $2 WHERE id = $1 AND retired_at IS NULL

-- name: insert_revocation
INSERT INTO revocations (id, cell, revoked_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING

-- name: revocation
SELECT id, cell, revoked_at FROM revocations WHERE id = $1

-- name: revoked
SELECT id FROM revocations WHERE id = ANY($1::text[])

-- name: uploaded_revocations
SELECT key, payload FROM mirror_uploads WHERE cell = $1 AND revision = $2 AND kind = 'revocation'

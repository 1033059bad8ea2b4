-- Which cell of the region an app lives in: kept by the region's first cell alone.

-- name: cell_of_app
-- The cell of an app. $1 app id.
SELECT cell FROM app_cells WHERE app_id = $1

-- name: choose_cell
-- Choose a cell for an app that has none. One with machines or volumes here, from when there was one cell only, stays.
-- $1 app id, $2 cells to choose from, the own one first, $3 moment.
INSERT INTO app_cells (app_id, cell, chosen_at)
SELECT
    $1,
    CASE
        WHEN EXISTS (SELECT FROM machines WHERE app_id = $1) OR EXISTS (SELECT FROM volumes WHERE app_id = $1)
        THEN ($2::text[])[1]
        ELSE (
            SELECT offered.cell
            FROM unnest($2::text[]) WITH ORDINALITY AS offered (cell, place)
            LEFT JOIN (app_cells AS taken JOIN apps ON apps.id = taken.app_id AND apps.deleted_at IS NULL)
                ON taken.cell = offered.cell
            GROUP BY offered.cell, offered.place
            ORDER BY count(taken.app_id), offered.place
            LIMIT 1
        )
    END,
    $3
ON CONFLICT (app_id) DO NOTHING

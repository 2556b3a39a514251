-- As before, but worked out once for each metric of a set: of a plain view, the server did so for each value it read.
CREATE OR REPLACE VIEW metric_slots AS
SELECT m.id AS metric_set, s.name, s.kind, s.slot
FROM metric_sets m CROSS JOIN LATERAL (
    SELECT u.name, substr(m.kinds, u.n::int, 1) AS kind,
           CASE WHEN substr(m.kinds, u.n::int, 1) = 't'
                THEN u.n::int - length(replace(left(m.kinds, u.n::int), 't', ''))
                ELSE length(replace(left(m.kinds, u.n::int), 't', '')) END AS slot
    FROM unnest(m.names) WITH ORDINALITY AS u (name, n) OFFSET 0) AS s;

-- Where each metric of a set stands: its kind, and its position in `numbers` (kinds n and b) or `texts` (t).
CREATE VIEW metric_slots AS
SELECT m.id AS metric_set, u.name, substr(m.kinds, u.n::int, 1) AS kind,
       CASE WHEN substr(m.kinds, u.n::int, 1) = 't'
            THEN u.n::int - length(replace(left(m.kinds, u.n::int), 't', ''))
            ELSE length(replace(left(m.kinds, u.n::int), 't', '')) END AS slot
FROM metric_sets m, unnest(m.names) WITH ORDINALITY AS u (name, n);

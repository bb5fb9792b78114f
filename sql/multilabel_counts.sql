-- How many rows got each label of a multi-label model?
--
-- Reads the table predictions of a multi-label model, and the table runs of --pipeline, which has the names of the
-- model's labels. Needs no gold labels.
--
--   $threshold = 0.5      the probability from which a row has a label
--   $labels = 100         the number of labels, the most frequent ones; left_out is the number of the others
--
--   couplet query --pipeline P.toml -f sql/multilabel_counts.sql
--
-- +-------+----------+-------------+--------------+------------------+----------+
-- | place | label    | rows_scored | rows_with_it | mean_probability | left_out |
-- +-------+----------+-------------+--------------+------------------+----------+
-- | 1     | long     | 525         | 202          | 0.3972           | 0        |
-- | 2     | number   | 525         | 0            | 0.0837           | 0        |
-- | 3     | question | 525         | 0            | 0.155            | 0        |
-- +-------+----------+-------------+--------------+------------------+----------+
WITH
  newest AS (
    SELECT labels FROM runs
    WHERE outcome = 'done' AND substr(model, 1, 16) IN (SELECT model FROM predictions)
    ORDER BY started_at DESC LIMIT 1
  ),
  names AS (SELECT unnest(labels) AS name, unnest(range(1, CAST(array_length(labels) AS BIGINT) + 1)) AS place FROM newest),
  cells AS (
    SELECT
      unnest(probabilities) AS probability,
      unnest(range(1, CAST(array_length(probabilities) AS BIGINT) + 1)) AS place
    FROM predictions
    WHERE probabilities IS NOT NULL
  ),
  counts AS (
    SELECT
      place,
      count(*) AS rows_scored,
      sum(CASE WHEN probability >= $threshold THEN 1 ELSE 0 END) AS rows_with_it,
      avg(probability) AS mean_probability
    FROM cells
    GROUP BY place
  ),
  ranked AS (SELECT *, row_number() OVER (ORDER BY rows_with_it DESC, place) AS nth, count(*) OVER () AS labels FROM counts)
SELECT
  ranked.place,
  name AS label,
  rows_scored,
  rows_with_it,
  round(mean_probability, 4) AS mean_probability,
  greatest(labels - $labels, 0) AS left_out
FROM ranked JOIN names ON ranked.place = names.place
WHERE nth <= $labels
ORDER BY ranked.place

-- How many rows have each label, where a row may have any number of them?
--
-- Reads the tables predictions, of a multi-label model, and runs, which --pipeline gives and which knows the names of
-- the model's labels. Needs no labels of one's own.
--
--   $threshold = 0.5      the probability from which on a row has a label
--
--   couplet query --pipeline P.toml -f sql/multilabel_counts.sql
--
-- +-------+----------+-------------+--------------+------------------+
-- | place | label    | rows_scored | rows_with_it | mean_probability |
-- +-------+----------+-------------+--------------+------------------+
-- | 1     | long     | 525         | 202          | 0.3972           |
-- | 2     | number   | 525         | 0            | 0.0837           |
-- | 3     | question | 525         | 0            | 0.155            |
-- +-------+----------+-------------+--------------+------------------+
WITH
  newest AS (
    SELECT labels FROM runs
    WHERE outcome = 'done' AND substr(model, 1, 16) IN (SELECT model FROM predictions)
    ORDER BY started_at DESC LIMIT 1
  ),
  names AS (SELECT unnest(labels) AS name, unnest(range(1, CAST(array_length(labels) AS BIGINT) + 1)) AS place FROM newest)
SELECT
  place,
  name AS label,
  count(*) AS rows_scored,
  sum(CASE WHEN array_element(probabilities, place) >= $threshold THEN 1 ELSE 0 END) AS rows_with_it,
  round(avg(array_element(probabilities, place)), 4) AS mean_probability
FROM predictions CROSS JOIN names
WHERE probabilities IS NOT NULL
GROUP BY place, name
ORDER BY place

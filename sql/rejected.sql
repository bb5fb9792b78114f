-- Which rows have no score, and why?
--
-- Reads the table predictions. A pipeline with errors = "quarantine" has its rejected rows in a separate table, which this
-- query reads with --table predictions=out/predictions_rejected. Returns all columns of the source query.
--
--   $rows = 20      the number of rows
--
--   couplet query --pipeline P.toml -f sql/rejected.sql
--
-- +--------------+----+------+---+------------+
-- | rows_with_it | id | a    | b | error      |
-- +--------------+----+------+---+------------+
-- | 2            | 4  | NULL | z | a is NULL  |
-- | 2            | 2  | NULL | x | a is NULL  |
-- | 1            | 3  |      | y | a is empty |
-- +--------------+----+------+---+------------+
SELECT
  count(*) OVER (PARTITION BY error) AS rows_with_it,
  * EXCLUDE (score, predicted_label, probabilities, truncated, raw_probabilities, model)
FROM predictions
WHERE error IS NOT NULL
ORDER BY rows_with_it DESC, error
LIMIT $rows

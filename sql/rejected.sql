-- Which rows have no score, and why?
--
-- Reads the table predictions (for a pipeline with errors = "quarantine" name its table of rejected rows:
-- --table predictions=out/predictions_rejected). Gives the columns of the source query, whatever they are called.
--
--   $rows = 20      how many
--
--   couplet query --pipeline P.toml -f sql/rejected.sql
SELECT
  count(*) OVER (PARTITION BY error) AS rows_with_it,
  * EXCLUDE (score, predicted_label, probabilities, truncated, raw_probabilities, model)
FROM predictions
WHERE error IS NOT NULL
ORDER BY rows_with_it DESC, error
LIMIT $rows

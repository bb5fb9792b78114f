-- On which rows is a regression farthest from what people said?
--
-- Reads the table predictions of a regression, with the columns label (a number) and score. Gives the columns of the
-- source query, whatever they are called.
--
--   $rows = 10      how many
--
--   couplet query --pipeline P.toml -f sql/regression_worst.sql
SELECT
  round(CAST(score AS DOUBLE) - CAST(label AS DOUBLE), 4) AS difference,
  round(score, 4) AS score,
  * EXCLUDE (score, predicted_label, probabilities, truncated, error, raw_probabilities, model)
FROM predictions
WHERE label IS NOT NULL AND predictions.score IS NOT NULL
ORDER BY abs(predictions.score - label) DESC, label
LIMIT $rows

-- Which rows are worth a person's label? Those of which the model is least sure, as many of each label that it gave.
--
-- Reads the table predictions; needs no labels of one's own. Gives the columns of the source query, whatever they are
-- called; with -o FILE.csv it is a list to fill in.
--
--   $rows = 20       how many
--   $below = 1.0     only rows whose score is below this
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/uncertain.sql --param rows=4 --format csv
SELECT
  round(score, 4) AS score,
  predicted_label,
  * EXCLUDE (score, predicted_label, probabilities, truncated, error, raw_probabilities, model)
FROM predictions
WHERE score < $below
ORDER BY
  row_number() OVER (PARTITION BY predicted_label ORDER BY predictions.score, probabilities),
  predictions.score,
  predicted_label
LIMIT $rows

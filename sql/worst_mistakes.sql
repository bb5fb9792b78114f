-- Where was the model surest, and wrong?
--
-- Reads the table predictions with the columns label and predicted_label (both of one type), and gives the columns of
-- the source query, whatever they are called.
--
--   $rows = 10      how many
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/worst_mistakes.sql --param rows=3 --format csv
SELECT
  round(score, 4) AS score,
  predicted_label,
  * EXCLUDE (score, predicted_label, probabilities, truncated, error, raw_probabilities, model)
FROM predictions
WHERE predicted_label <> label
ORDER BY predictions.score DESC, probabilities, label
LIMIT $rows

-- What was taken for what? The confusion matrix, a row for each pair of label and predicted label.
--
-- Reads the table predictions with the columns label and predicted_label. Rows that were rejected count under
-- the predicted label (rejected).
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/confusion.sql
SELECT
  label,
  coalesce(predicted_label, '(rejected)') AS predicted,
  count(*) AS rows,
  round(100.0 * count(*) / sum(count(*)) OVER (PARTITION BY label), 1) AS percent_of_label
FROM predictions
WHERE label IS NOT NULL
GROUP BY label, coalesce(predicted_label, '(rejected)')
ORDER BY label, predicted

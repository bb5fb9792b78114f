-- Which labels are confused? The confusion matrix, one row per pair of label and predicted label.
--
-- Reads the table predictions with the columns label and predicted_label. Rows that were rejected count under
-- the predicted label (rejected).
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/confusion.sql
--
-- +----------------+----------------+------+------------------+
-- | label          | predicted      | rows | percent_of_label |
-- +----------------+----------------+------+------------------+
-- | not_paraphrase | not_paraphrase | 104  | 42.1             |
-- | not_paraphrase | paraphrase     | 143  | 57.9             |
-- | paraphrase     | not_paraphrase | 86   | 30.9             |
-- | paraphrase     | paraphrase     | 192  | 69.1             |
-- +----------------+----------------+------+------------------+
SELECT
  label,
  coalesce(predicted_label, '(rejected)') AS predicted,
  count(*) AS rows,
  round(100.0 * count(*) / sum(count(*)) OVER (PARTITION BY label), 1) AS percent_of_label
FROM predictions
WHERE label IS NOT NULL
GROUP BY label, coalesce(predicted_label, '(rejected)')
ORDER BY label, predicted

-- How good is each label? Precision, recall and F1, and Matthews' correlation coefficient if there are two labels.
--
-- Reads the table predictions with the columns label and predicted_label (of the same type). For imbalanced
-- labels, F1 of the rarer label is more informative than accuracy; Matthews is 0 for random guessing.
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/f1.sql
--
-- +----------------+------+-----------+--------+--------+----------+
-- | label          | rows | precision | recall | f1     | matthews |
-- +----------------+------+-----------+--------+--------+----------+
-- | not_paraphrase | 247  | 0.5474    | 0.4211 | 0.476  | 0.116    |
-- | paraphrase     | 278  | 0.5731    | 0.6906 | 0.6264 | 0.116    |
-- +----------------+------+-----------+--------+--------+----------+
WITH
  judged AS (
    SELECT label, predicted_label
    FROM predictions
    WHERE predicted_label IS NOT NULL AND label IS NOT NULL
  ),
  labels AS (
    SELECT label AS name FROM judged
    UNION
    SELECT predicted_label FROM judged
  ),
  counts AS (
    SELECT
      name,
      CAST(sum(CASE WHEN label = name AND predicted_label = name THEN 1 ELSE 0 END) AS DOUBLE) AS tp,
      CAST(sum(CASE WHEN label <> name AND predicted_label = name THEN 1 ELSE 0 END) AS DOUBLE) AS fp,
      CAST(sum(CASE WHEN label = name AND predicted_label <> name THEN 1 ELSE 0 END) AS DOUBLE) AS fn,
      CAST(sum(CASE WHEN label <> name AND predicted_label <> name THEN 1 ELSE 0 END) AS DOUBLE) AS tn
    FROM labels CROSS JOIN judged
    GROUP BY name
  )
SELECT
  name AS label,
  CAST(tp + fn AS BIGINT) AS rows,
  round(tp / nullif(tp + fp, 0), 4) AS precision,
  round(tp / nullif(tp + fn, 0), 4) AS recall,
  round(2 * tp / nullif(2 * tp + fp + fn, 0), 4) AS f1,
  CASE
    WHEN (SELECT count(*) FROM labels) = 2
    THEN round((tp * tn - fp * fn) / nullif(sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)), 0), 4)
  END AS matthews
FROM counts
ORDER BY label

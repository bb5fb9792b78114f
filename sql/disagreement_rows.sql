-- On which rows do two models disagree the most? Those where both are sure come first.
--
-- Reads the tables predictions and other, two outputs over the same rows with the column id (for other ids, change the
-- USING below). Gives the columns of the source query, whatever they are called.
--
--   $rows = 20      how many
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml --table other=out/other.parquet -f sql/disagreement_rows.sql
WITH o AS (SELECT id, predicted_label AS other_label, score AS other_score FROM other)
SELECT
  predicted_label,
  round(score, 4) AS score,
  other_label,
  round(other_score, 4) AS other_score,
  p.* EXCLUDE (score, predicted_label, probabilities, truncated, error, raw_probabilities, model)
FROM predictions p JOIN o USING (id)
WHERE predicted_label <> other_label
ORDER BY least(p.score, o.other_score) DESC, id
LIMIT $rows

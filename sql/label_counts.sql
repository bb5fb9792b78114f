-- How many rows got each label, and how confident was the model?
--
-- Reads the table predictions; needs no gold labels.
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/label_counts.sql
--
-- +----------------+------+------------+--------------+
-- | predicted      | rows | mean_score | lowest_score |
-- +----------------+------+------------+--------------+
-- | paraphrase     | 335  | 0.9503     | 0.504        |
-- | not_paraphrase | 190  | 0.8848     | 0.5166       |
-- +----------------+------+------------+--------------+
SELECT
  coalesce(predicted_label, error) AS predicted,
  count(*) AS rows,
  round(avg(score), 4) AS mean_score,
  round(min(score), 4) AS lowest_score
FROM predictions
GROUP BY coalesce(predicted_label, error)
ORDER BY rows DESC, predicted

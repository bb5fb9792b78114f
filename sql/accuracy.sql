-- How often does the prediction equal the gold label?
--
-- Reads the table predictions with the columns label and predicted_label (of the same type). Rejected rows,
-- which have no prediction, and rows without a label are left out.
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/accuracy.sql
--
-- +------+----------+
-- | rows | accuracy |
-- +------+----------+
-- | 525  | 0.5638   |
-- +------+----------+
SELECT
  count(*) AS rows,
  round(avg(CASE WHEN predicted_label = label THEN 1.0 ELSE 0.0 END), 4) AS accuracy
FROM predictions
WHERE predicted_label IS NOT NULL AND label IS NOT NULL

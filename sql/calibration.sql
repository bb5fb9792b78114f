-- Are predictions with a score of 90 % correct in 90 % of the rows? The reliability of the scores, by bin.
--
-- Reads the table predictions with the columns label, predicted_label and score (label and predicted_label of the
-- same type). A bin has the scores above its lower end, up to its upper end. If accuracy is below confidence, the model
-- is overconfident; `expected_error` is the expected calibration error: the mean distance of the two over all rows.
--
--   $bins = 10      the number of bins between 0 and 1
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/calibration.sql --param bins=5
--
-- +-------+-------+------+------------+----------+----------------+
-- | above | up_to | rows | confidence | accuracy | expected_error |
-- +-------+-------+------+------------+----------+----------------+
-- | 0.4   | 0.6   | 17   | 0.5461     | 0.5294   | 0.3628         |
-- | 0.6   | 0.8   | 47   | 0.7152     | 0.4681   | 0.3628         |
-- | 0.8   | 1.0   | 461  | 0.9622     | 0.5748   | 0.3628         |
-- +-------+-------+------+------------+----------+----------------+
WITH
  judged AS (
    SELECT
      CAST(greatest(ceil(score * CAST($bins AS DOUBLE)), 1) AS BIGINT) AS bin,
      CAST(score AS DOUBLE) AS score,
      CASE WHEN predicted_label = label THEN 1.0 ELSE 0.0 END AS is_right
    FROM predictions
    WHERE predicted_label IS NOT NULL AND label IS NOT NULL
  ),
  bins AS (
    SELECT bin, count(*) AS rows, avg(score) AS confidence, avg(is_right) AS accuracy
    FROM judged
    GROUP BY bin
  )
SELECT
  round((bin - 1) / CAST($bins AS DOUBLE), 4) AS above,
  round(bin / CAST($bins AS DOUBLE), 4) AS up_to,
  rows,
  round(confidence, 4) AS confidence,
  round(accuracy, 4) AS accuracy,
  round(sum(rows * abs(accuracy - confidence)) OVER () / sum(rows) OVER (), 4) AS expected_error
FROM bins
ORDER BY bin

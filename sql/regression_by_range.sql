-- For which labels is a regression wrong? Its error by range of the gold label.
--
-- Reads the table predictions of a regression, with the columns label (a number) and score. A range has the labels
-- from its lower end to below its upper end.
--
--   $width = 1      the width of a range
--
--   couplet query --pipeline P.toml -f sql/regression_by_range.sql
--
-- +------------+-------+------+------------+------------+--------+---------+
-- | from_label | below | rows | mean_label | mean_score | mae    | bias    |
-- +------------+-------+------+------------+------------+--------+---------+
-- | 0.0        | 1.0   | 344  | 0.3041     | 2.6526     | 2.3485 | 2.3485  |
-- | 1.0        | 2.0   | 254  | 1.4405     | 2.7204     | 1.28   | 1.2799  |
-- | 2.0        | 3.0   | 273  | 2.4193     | 2.7724     | 0.4733 | 0.353   |
-- | 3.0        | 4.0   | 365  | 3.3719     | 2.8378     | 0.563  | -0.5341 |
-- | 4.0        | 5.0   | 208  | 4.3468     | 2.7472     | 1.5996 | -1.5996 |
-- | 5.0        | 6.0   | 56   | 5.0        | 2.5486     | 2.4514 | -2.4514 |
-- +------------+-------+------+------------+------------+--------+---------+
WITH judged AS (
  SELECT
    floor(CAST(label AS DOUBLE) / CAST($width AS DOUBLE)) AS bin,
    CAST(label AS DOUBLE) AS label,
    CAST(score AS DOUBLE) AS score
  FROM predictions
  WHERE label IS NOT NULL AND score IS NOT NULL
)
SELECT
  round(bin * CAST($width AS DOUBLE), 4) AS from_label,
  round((bin + 1) * CAST($width AS DOUBLE), 4) AS below,
  count(*) AS rows,
  round(avg(label), 4) AS mean_label,
  round(avg(score), 4) AS mean_score,
  round(avg(abs(score - label)), 4) AS mae,
  round(avg(score - label), 4) AS bias
FROM judged
GROUP BY bin
ORDER BY bin

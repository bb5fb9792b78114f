-- Where on the scale is a regression off? Its error by ranges of what people said.
--
-- Reads the table predictions of a regression, with the columns label (a number) and score. A range has the labels
-- from its lower end to below its upper end.
--
--   $width = 1      the width of a range
--
--   couplet query --pipeline P.toml -f sql/regression_by_range.sql --param width=0.5
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

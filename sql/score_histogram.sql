-- How are the scores distributed?
--
-- Reads the table predictions; needs no gold labels. Scores are probabilities, or the values of a regression,
-- which need wider bins. A bin has the scores above its lower end, up to its upper end.
--
--   $width = 0.05      the width of a bin
--   $bar = 40          the length of the longest bar, in characters
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/score_histogram.sql
--
-- +-------+-------+------+---------+------------------------------------------+
-- | above | up_to | rows | percent | bar                                      |
-- +-------+-------+------+---------+------------------------------------------+
-- | 0.5   | 0.55  | 9    | 1.7     | #                                        |
-- | 0.55  | 0.6   | 8    | 1.5     | #                                        |
-- | 0.6   | 0.65  | 7    | 1.3     | #                                        |
-- | 0.65  | 0.7   | 10   | 1.9     | #                                        |
-- | 0.7   | 0.75  | 14   | 2.7     | ##                                       |
-- | 0.75  | 0.8   | 16   | 3.0     | ##                                       |
-- | 0.8   | 0.85  | 17   | 3.2     | ##                                       |
-- | 0.85  | 0.9   | 19   | 3.6     | ##                                       |
-- | 0.9   | 0.95  | 57   | 10.9    | ######                                   |
-- | 0.95  | 1.0   | 368  | 70.1    | ######################################## |
-- +-------+-------+------+---------+------------------------------------------+
WITH bins AS (
  SELECT CAST(ceil(score / CAST($width AS DOUBLE)) AS BIGINT) AS bin, count(*) AS rows
  FROM predictions
  WHERE score IS NOT NULL
  GROUP BY 1
)
SELECT
  round((bin - 1) * CAST($width AS DOUBLE), 4) AS above,
  round(bin * CAST($width AS DOUBLE), 4) AS up_to,
  rows,
  round(100.0 * rows / sum(rows) OVER (), 1) AS percent,
  repeat('#', CAST(round(CAST($bar AS DOUBLE) * rows / max(rows) OVER ()) AS BIGINT)) AS bar
FROM bins
ORDER BY bin

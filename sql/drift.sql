-- Have the scores drifted since an earlier run? PSI and KS statistic of the scores of two tables.
--
-- Reads the tables before and predictions; before is an earlier output: a version of a Delta table, the folder of a
-- run, or a copy of a file. The PSI (population stability index) is 0 for equal distributions; 0.1 counts as a small
-- shift and 0.25 as a large one. Its bins are quantiles of the earlier scores; a score as frequent as a quantile has a
-- bin of its own. ks is the largest difference between the cumulative distributions, 0 to 1; for equal distributions,
-- it exceeds ks_by_chance in 5 % of the cases. Rows without a score are ignored. By label: sql/drift_labels.sql.
--
--   $bins = 10      the number of bins of the PSI
--
--   couplet query --pipeline P.toml --table before=out/predictions@3 -f sql/drift.sql
--
-- +-------------+----------+-------------+----------+--------+--------+--------------+
-- | rows_before | rows_now | mean_before | mean_now | psi    | ks     | ks_by_chance |
-- +-------------+----------+-------------+----------+--------+--------+--------------+
-- | 525         | 525      | 0.9908      | 0.9266   | 5.0059 | 0.8095 | 0.0838       |
-- +-------------+----------+-------------+----------+--------+--------+--------------+
WITH
  -- Scores that were saved as text have the digits of a REAL, so they must be parsed as REAL to compare equal.
  old AS (SELECT CAST(CAST(score AS REAL) AS DOUBLE) AS score FROM before WHERE score IS NOT NULL),
  new AS (SELECT CAST(CAST(score AS REAL) AS DOUBLE) AS score FROM predictions WHERE score IS NOT NULL),
  sizes AS (
    SELECT
      CAST((SELECT count(*) FROM old) AS DOUBLE) AS n,
      CAST((SELECT count(*) FROM new) AS DOUBLE) AS m,
      CAST($bins AS DOUBLE) AS bins
  ),
  points AS (
    SELECT score, sum(is_old) AS old_rows, sum(1 - is_old) AS new_rows
    FROM (SELECT score, 1 AS is_old FROM old UNION ALL SELECT score, 0 AS is_old FROM new)
    GROUP BY score
  ),
  curves AS (
    SELECT
      score,
      old_rows,
      new_rows,
      n,
      m,
      bins,
      CASE WHEN old_rows * bins >= n THEN 1 ELSE 0 END AS is_alone,
      sum(old_rows) OVER (ORDER BY score) AS old_up_to,
      sum(new_rows) OVER (ORDER BY score) AS new_up_to
    FROM points CROSS JOIN sizes
    -- With an empty table there is nothing to compare.
    WHERE n > 0 AND m > 0
  ),
  ks AS (SELECT max(abs(old_up_to / n - new_up_to / m)) AS ks FROM curves),
  placed AS (
    SELECT
      *,
      -- A score between two earlier scores belongs to the bin of the higher one.
      least(CASE WHEN old_rows > 0 THEN ceil(old_up_to * bins / n) ELSE floor(old_up_to * bins / n) + 1 END, bins) AS bin,
      -- The scores below and above a score with a bin of its own are in different bins.
      sum(is_alone) OVER (ORDER BY score) AS alone_up_to
    FROM curves
  ),
  -- An empty bin counts as half a row, which keeps the logarithm finite.
  shares AS (
    SELECT
      greatest(CAST(sum(old_rows) AS DOUBLE), 0.5) / max(n) AS p,
      greatest(CAST(sum(new_rows) AS DOUBLE), 0.5) / max(m) AS q
    FROM placed
    GROUP BY bin, alone_up_to, is_alone
  ),
  psi AS (SELECT sum((q - p) * ln(q / p)) AS psi FROM shares)
SELECT
  CAST(n AS BIGINT) AS rows_before,
  CAST(m AS BIGINT) AS rows_now,
  round((SELECT avg(score) FROM old), 4) AS mean_before,
  round((SELECT avg(score) FROM new), 4) AS mean_now,
  round(psi, 4) AS psi,
  round(ks, 4) AS ks,
  round(1.358 * sqrt((n + m) / nullif(n * m, 0)), 4) AS ks_by_chance
FROM sizes CROSS JOIN ks CROSS JOIN psi

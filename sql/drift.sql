-- Have the scores moved since an earlier night? PSI and KS of two tables' scores.
--
-- Reads the tables before and predictions; before is an earlier output: a version of a Delta table, the folder of a
-- run, or a file that was kept. The PSI (population stability index) is 0 for equal distributions; 0.1 is called a small shift and
-- 0.25 a large one. Its bins have equally many of the earlier scores. ks is the largest difference of the
-- shares of scores up to a point, 0 to 1; equal distributions exceed ks_by_chance in one case of 20. For what moved,
-- see sql/drift_labels.sql.
--
--   $bins = 10      bins of the PSI
--
--   couplet query --pipeline P.toml --table before=out/predictions@3 -f sql/drift.sql
--
-- +-------------+----------+-------------+----------+--------+--------+--------------+
-- | rows_before | rows_now | mean_before | mean_now | psi    | ks     | ks_by_chance |
-- +-------------+----------+-------------+----------+--------+--------+--------------+
-- | 525         | 525      | 0.9908      | 0.9266   | 5.0059 | 0.8095 | 0.0838       |
-- +-------------+----------+-------------+----------+--------+--------+--------------+
WITH
  old AS (SELECT CAST(score AS DOUBLE) AS score FROM before WHERE score IS NOT NULL),
  new AS (SELECT CAST(score AS DOUBLE) AS score FROM predictions WHERE score IS NOT NULL),
  sizes AS (
    SELECT
      CAST((SELECT count(*) FROM old) AS DOUBLE) AS n,
      CAST((SELECT count(*) FROM new) AS DOUBLE) AS m
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
      sum(old_rows) OVER (ORDER BY score) AS old_up_to,
      sum(new_rows) OVER (ORDER BY score) AS new_up_to
    FROM points
  ),
  ks AS (SELECT max(abs(old_up_to / n - new_up_to / m)) AS ks FROM curves CROSS JOIN sizes),
  -- Scores that lie between two of the earlier ones go to the bin of the next.
  bins AS (
    SELECT
      least(ceil(greatest(old_up_to, 1) * CAST($bins AS DOUBLE) / n), CAST($bins AS DOUBLE)) AS bin,
      greatest(CAST(sum(old_rows) AS DOUBLE), 0.5) / max(n) AS p,
      greatest(CAST(sum(new_rows) AS DOUBLE), 0.5) / max(m) AS q
    FROM curves CROSS JOIN sizes
    GROUP BY 1
  ),
  psi AS (SELECT sum((q - p) * ln(q / p)) AS psi FROM bins)
SELECT
  CAST(n AS BIGINT) AS rows_before,
  CAST(m AS BIGINT) AS rows_now,
  round((SELECT avg(score) FROM old), 4) AS mean_before,
  round((SELECT avg(score) FROM new), 4) AS mean_now,
  round(psi, 4) AS psi,
  round(ks, 4) AS ks,
  round(1.358 * sqrt((n + m) / (n * m)), 4) AS ks_by_chance
FROM sizes CROSS JOIN ks CROSS JOIN psi

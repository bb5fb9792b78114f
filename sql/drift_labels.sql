-- Have the labels drifted since an earlier run? The share of each label in two tables.
--
-- Reads the tables before and predictions; before is an earlier output, as in sql/drift.sql. psi is the label's
-- contribution to the population stability index of the labels, psi_of_all. A label without rows counts as half a row.
-- Rows without a label are ignored.
--
--   couplet query --pipeline P.toml --table before=out/predictions@3 -f sql/drift_labels.sql
--
-- +----------------+-------------+----------+----------------+-------------+--------+------------+
-- | label          | rows_before | rows_now | percent_before | percent_now | psi    | psi_of_all |
-- +----------------+-------------+----------+----------------+-------------+--------+------------+
-- | not_paraphrase | 525         | 190      | 100.0          | 36.2        | 0.6485 | 4.7946     |
-- | paraphrase     | 0           | 335      | 0.0            | 63.8        | 4.1461 | 4.7946     |
-- +----------------+-------------+----------+----------------+-------------+--------+------------+
WITH
  both AS (
    SELECT CAST(predicted_label AS VARCHAR) AS label, 1 AS is_old FROM before WHERE predicted_label IS NOT NULL
    UNION ALL
    SELECT CAST(predicted_label AS VARCHAR) AS label, 0 AS is_old FROM predictions WHERE predicted_label IS NOT NULL
  ),
  counts AS (
    SELECT label, sum(is_old) AS old_rows, sum(1 - is_old) AS new_rows FROM both GROUP BY label
  ),
  sizes AS (
    SELECT
      *,
      -- An empty table has no shares.
      CAST(nullif(sum(old_rows) OVER (), 0) AS DOUBLE) AS n,
      CAST(nullif(sum(new_rows) OVER (), 0) AS DOUBLE) AS m
    FROM counts
  ),
  shares AS (
    SELECT
      *,
      greatest(CAST(old_rows AS DOUBLE), 0.5) / n AS p,
      greatest(CAST(new_rows AS DOUBLE), 0.5) / m AS q
    FROM sizes
  )
SELECT
  label,
  old_rows AS rows_before,
  new_rows AS rows_now,
  round(100 * old_rows / n, 1) AS percent_before,
  round(100 * new_rows / m, 1) AS percent_now,
  round((q - p) * ln(q / p), 4) AS psi,
  round(sum((q - p) * ln(q / p)) OVER (), 4) AS psi_of_all
FROM shares
ORDER BY label

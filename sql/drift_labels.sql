-- Have the labels moved since an earlier night? The share of each label in two tables.
--
-- Reads the tables before and predictions; before is an earlier output, as in sql/drift.sql. psi is what the label
-- adds to the population stability index of the labels; the last column is the whole.
--
--   couplet query --pipeline P.toml --table before=out/predictions@3 -f sql/drift_labels.sql
--
-- +----------------+-------------+----------+----------------+-------------+--------+------------+
-- | label          | rows_before | rows_now | percent_before | percent_now | psi    | psi_of_all |
-- +----------------+-------------+----------+----------------+-------------+--------+------------+
-- | not_paraphrase | 525         | 190      | 100.0          | 36.2        | 0.6485 | 4.7946     |
-- | paraphrase     | 0           | 335      | 0.1            | 63.8        | 4.1461 | 4.7946     |
-- +----------------+-------------+----------+----------------+-------------+--------+------------+
WITH
  both AS (
    SELECT predicted_label, 1 AS is_old FROM before WHERE predicted_label IS NOT NULL
    UNION ALL
    SELECT predicted_label, 0 AS is_old FROM predictions WHERE predicted_label IS NOT NULL
  ),
  counts AS (
    SELECT predicted_label AS label, sum(is_old) AS old_rows, sum(1 - is_old) AS new_rows FROM both GROUP BY predicted_label
  ),
  shares AS (
    SELECT
      label,
      old_rows,
      new_rows,
      greatest(CAST(old_rows AS DOUBLE), 0.5) / sum(old_rows) OVER () AS p,
      greatest(CAST(new_rows AS DOUBLE), 0.5) / sum(new_rows) OVER () AS q
    FROM counts
  )
SELECT
  label,
  old_rows AS rows_before,
  new_rows AS rows_now,
  round(100 * p, 1) AS percent_before,
  round(100 * q, 1) AS percent_now,
  round((q - p) * ln(q / p), 4) AS psi,
  round(sum((q - p) * ln(q / p)) OVER (), 4) AS psi_of_all
FROM shares
ORDER BY label

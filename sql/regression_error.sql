-- How far are the values of a regression from the gold labels?
--
-- Reads the table predictions of a regression, with the columns label (a number) and score. mae is the mean absolute
-- error, rmse the root mean squared error, bias the mean of score - label, r2 the share of explained variance; pearson
-- is the correlation, spearman the rank correlation (equal values get their mean rank).
--
--   couplet query --pipeline P.toml -f sql/regression_error.sql
--
-- +------+--------+--------+--------+---------+---------+----------+
-- | rows | mae    | rmse   | bias   | r2      | pearson | spearman |
-- +------+--------+--------+--------+---------+---------+----------+
-- | 1500 | 1.2918 | 1.5637 | 0.3763 | -0.0867 | 0.0889  | 0.0726   |
-- +------+--------+--------+--------+---------+---------+----------+
WITH
  judged AS (
    SELECT CAST(label AS DOUBLE) AS label, CAST(score AS DOUBLE) AS score
    FROM predictions
    WHERE label IS NOT NULL AND score IS NOT NULL
  ),
  ranked AS (
    SELECT
      label,
      score,
      rank() OVER (ORDER BY label) + (count(*) OVER (PARTITION BY label) - 1) / 2.0 AS label_rank,
      rank() OVER (ORDER BY score) + (count(*) OVER (PARTITION BY score) - 1) / 2.0 AS score_rank
    FROM judged
  )
SELECT
  count(*) AS rows,
  round(avg(abs(score - label)), 4) AS mae,
  round(sqrt(avg((score - label) * (score - label))), 4) AS rmse,
  round(avg(score - label), 4) AS bias,
  round(1 - avg((score - label) * (score - label)) / nullif(var_pop(label), 0), 4) AS r2,
  round(corr(score, label), 4) AS pearson,
  round(corr(CAST(score_rank AS DOUBLE), CAST(label_rank AS DOUBLE)), 4) AS spearman
FROM ranked

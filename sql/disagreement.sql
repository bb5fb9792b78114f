-- Where do two models disagree? How often each label of one meets each label of the other.
--
-- Reads the tables predictions and other, two outputs over the same rows with the column id (for other ids, change the
-- USING below). kappa is the agreement beyond chance, 1 at most.
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml --table other=out/other.parquet -f sql/disagreement.sql
--
-- +----------------+----------------+------+---------+-----------+-------+
-- | label          | other          | rows | percent | agreement | kappa |
-- +----------------+----------------+------+---------+-----------+-------+
-- | not_paraphrase | not_paraphrase | 190  | 36.2    | 36.2      | 0.0   |
-- | paraphrase     | not_paraphrase | 335  | 63.8    | 36.2      | 0.0   |
-- +----------------+----------------+------+---------+-----------+-------+
WITH
  both AS (
    SELECT p.predicted_label AS label, o.predicted_label AS other
    FROM predictions p JOIN other o USING (id)
    WHERE p.predicted_label IS NOT NULL AND o.predicted_label IS NOT NULL
  ),
  cells AS (SELECT label, other, count(*) AS rows FROM both GROUP BY label, other),
  shares AS (
    SELECT
      *,
      CAST(rows AS DOUBLE) / sum(rows) OVER () AS share,
      CAST(sum(rows) OVER (PARTITION BY label) AS DOUBLE) / sum(rows) OVER () AS of_label,
      CAST(sum(rows) OVER (PARTITION BY other) AS DOUBLE) / sum(rows) OVER () AS of_other
    FROM cells
  ),
  -- The share that two models would agree on by chance: the sum of the products over the labels.
  chance AS (
    SELECT sum(a.share * b.share) AS by_chance
    FROM (SELECT label, sum(share) AS share FROM shares GROUP BY label) a
    JOIN (SELECT other, sum(share) AS share FROM shares GROUP BY other) b ON a.label = b.other
  ),
  agreed AS (SELECT sum(CASE WHEN label = other THEN share ELSE 0 END) AS agreement FROM shares)
SELECT
  label,
  other,
  rows,
  round(100 * share, 1) AS percent,
  round(100 * agreement, 1) AS agreement,
  round((agreement - coalesce(by_chance, 0)) / nullif(1 - coalesce(by_chance, 0), 0), 4) AS kappa
FROM shares CROSS JOIN agreed CROSS JOIN chance
ORDER BY label, other

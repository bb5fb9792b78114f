-- Where do two models disagree? How often each label of one coincides with each label of the other.
--
-- Reads the tables predictions and other, two outputs over the same rows with the column id (for other ids, change the
-- ON below). kappa (Cohen's) is the agreement beyond chance, at most 1. Rows that only one of the two has, or has a
-- label for, are listed with NULL for the other, and count nowhere else.
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
    FROM predictions p FULL JOIN other o ON p.id IS NOT DISTINCT FROM o.id
    WHERE p.predicted_label IS NOT NULL OR o.predicted_label IS NOT NULL
  ),
  cells AS (SELECT label, other, count(*) AS rows FROM both GROUP BY label, other),
  shares AS (
    SELECT label, other, CAST(rows AS DOUBLE) / sum(rows) OVER () AS share
    FROM cells
    WHERE label IS NOT NULL AND other IS NOT NULL
  ),
  -- The expected agreement by chance: the sum of the products of the shares of each label. A label that only one model
  -- predicts adds nothing.
  chance AS (
    SELECT coalesce(sum(a.share * b.share), 0) AS by_chance
    FROM (SELECT label, sum(share) AS share FROM shares GROUP BY label) a
    JOIN (SELECT other, sum(share) AS share FROM shares GROUP BY other) b ON a.label = b.other
  ),
  agreed AS (SELECT sum(CASE WHEN label = other THEN share ELSE 0 END) AS agreement FROM shares)
SELECT
  cells.label,
  cells.other,
  rows,
  round(100 * share, 1) AS percent,
  round(100 * agreement, 1) AS agreement,
  round((agreement - by_chance) / nullif(1 - by_chance, 0), 4) AS kappa
FROM cells
LEFT JOIN shares ON cells.label = shares.label AND cells.other = shares.other
CROSS JOIN agreed
CROSS JOIN chance
ORDER BY cells.label, cells.other

-- How good is each label of a multi-label model? Precision, recall and F1.
--
-- Reads the table predictions of a multi-label model, with the column label (a list of texts), and the table runs of
-- --pipeline, which has the names of the model's labels. f1_micro and f1_macro are averages over all labels, including
-- those that are left out.
--
--   $threshold = 0.5      the probability from which a row has a label
--   $labels = 100         the number of labels, the most frequent ones; left_out is the number of the others
--
--   couplet query --pipeline P.toml -f sql/multilabel_f1.sql
--
-- +----------+--------------+----------------+-----------+--------+--------+----------+----------+----------+
-- | label    | rows_with_it | rows_predicted | precision | recall | f1     | f1_micro | f1_macro | left_out |
-- +----------+--------------+----------------+-----------+--------+--------+----------+----------+----------+
-- | long     | 202          | 202            | 0.9356    | 0.9356 | 0.9356 | 0.7119   | 0.3119   | 0        |
-- | number   | 49           | 0              | NULL      | 0.0    | 0.0    | 0.7119   | 0.3119   | 0        |
-- | question | 78           | 0              | NULL      | 0.0    | 0.0    | 0.7119   | 0.3119   | 0        |
-- +----------+--------------+----------------+-----------+--------+--------+----------+----------+----------+
WITH
  newest AS (
    SELECT labels FROM runs
    WHERE outcome = 'done' AND substr(model, 1, 16) IN (SELECT model FROM predictions)
    ORDER BY started_at DESC LIMIT 1
  ),
  names AS (SELECT unnest(labels) AS name, unnest(range(1, CAST(array_length(labels) AS BIGINT) + 1)) AS place FROM newest),
  cells AS (
    SELECT
      label,
      unnest(probabilities) AS probability,
      unnest(range(1, CAST(array_length(probabilities) AS BIGINT) + 1)) AS place
    FROM predictions
    WHERE probabilities IS NOT NULL AND label IS NOT NULL
  ),
  judged AS (
    SELECT
      names.place,
      name,
      coalesce(array_has(label, name), false) AS is_so,
      probability >= $threshold AS is_said
    FROM cells JOIN names ON cells.place = names.place
  ),
  counts AS (
    SELECT
      place,
      name,
      CAST(sum(CASE WHEN is_so AND is_said THEN 1 ELSE 0 END) AS DOUBLE) AS tp,
      CAST(sum(CASE WHEN NOT is_so AND is_said THEN 1 ELSE 0 END) AS DOUBLE) AS fp,
      CAST(sum(CASE WHEN is_so AND NOT is_said THEN 1 ELSE 0 END) AS DOUBLE) AS fn
    FROM judged
    GROUP BY place, name
  ),
  scored AS (SELECT *, coalesce(2 * tp / nullif(2 * tp + fp + fn, 0), 0) AS f1 FROM counts),
  ranked AS (
    SELECT
      *,
      2 * sum(tp) OVER () / nullif(sum(2 * tp + fp + fn) OVER (), 0) AS f1_micro,
      avg(f1) OVER () AS f1_macro,
      row_number() OVER (ORDER BY tp + fn DESC, place) AS nth,
      count(*) OVER () AS labels
    FROM scored
  )
SELECT
  name AS label,
  CAST(tp + fn AS BIGINT) AS rows_with_it,
  CAST(tp + fp AS BIGINT) AS rows_predicted,
  round(tp / nullif(tp + fp, 0), 4) AS precision,
  round(tp / nullif(tp + fn, 0), 4) AS recall,
  round(f1, 4) AS f1,
  round(f1_micro, 4) AS f1_micro,
  round(f1_macro, 4) AS f1_macro,
  greatest(labels - $labels, 0) AS left_out
FROM ranked
WHERE nth <= $labels
ORDER BY place

-- On which rows do two models disagree the most? Rows on which both are confident come first.
--
-- Reads the tables predictions and other, two outputs over the same rows with the column id (for other ids, change the
-- ON below). Returns all columns of the source query. Rows that only one of the two scored are left out.
--
--   $rows = 20      the number of rows
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml --table other=out/other.parquet \
--     -f sql/disagreement_rows.sql --param rows=2 --format csv
--
-- predicted_label,score,other_label,other_score,id,sentence1,sentence2,category,label
-- paraphrase,0.9876,not_paraphrase,0.9952,q0410,Retail sales fell in May for the third month in a row as households put off big purchases.,Retail sales fell for the third month in a row in May because households put off big purchases.,news,paraphrase
-- paraphrase,0.9876,not_paraphrase,0.9891,q0091,Airlines will soon have to refund passengers within a week if a flight is cancelled.,"If a flight is cancelled, airlines will soon have to refund passengers within a week.",news,paraphrase
WITH
  o AS (SELECT id AS __id, predicted_label AS __label, score AS __score FROM other),
  placed AS (
    SELECT p.*, o.*, row_number() OVER (ORDER BY least(p.score, __score) DESC, p.id) AS __place
    FROM predictions p JOIN o ON p.id IS NOT DISTINCT FROM __id
    WHERE p.predicted_label <> __label
  )
SELECT
  predicted_label,
  round(score, 4) AS score,
  __label AS other_label,
  round(__score, 4) AS other_score,
  * EXCLUDE (
    score, predicted_label, probabilities, truncated, error, raw_probabilities, model, __id, __label, __score, __place
  )
FROM placed
ORDER BY __place
LIMIT $rows

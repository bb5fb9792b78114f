-- On which rows do two models disagree the most? Those where both are sure come first.
--
-- Reads the tables predictions and other, two outputs over the same rows with the column id (for other ids, change the
-- USING below). Gives the columns of the source query, whatever they are called.
--
--   $rows = 20      how many
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml --table other=out/other.parquet \
--     -f sql/disagreement_rows.sql --param rows=2 --format csv
--
-- predicted_label,score,other_label,other_score,sentence1,sentence2,category,label,id
-- paraphrase,0.9876,not_paraphrase,0.9952,Retail sales fell in May for the third month in a row as households put off big purchases.,Retail sales fell for the third month in a row in May because households put off big purchases.,news,paraphrase,q0410
-- paraphrase,0.9876,not_paraphrase,0.9891,Airlines will soon have to refund passengers within a week if a flight is cancelled.,"If a flight is cancelled, airlines will soon have to refund passengers within a week.",news,paraphrase,q0091
WITH
  o AS (SELECT id, predicted_label AS other_label, score AS other_score FROM other),
  placed AS (
    SELECT *, row_number() OVER (ORDER BY least(score, other_score) DESC, id) AS place
    FROM predictions JOIN o USING (id)
    WHERE predicted_label <> other_label
  )
SELECT
  predicted_label,
  round(score, 4) AS score,
  other_label,
  round(other_score, 4) AS other_score,
  * EXCLUDE (
    score, predicted_label, other_label, other_score, probabilities, truncated, error, raw_probabilities, model, place
  )
FROM placed
ORDER BY place
LIMIT $rows

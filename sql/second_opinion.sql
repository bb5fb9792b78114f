-- What does another model predict for the rows with the lowest scores? predict() runs it in this query.
--
-- Reads the table predictions with the columns sentence1 and sentence2; change them in the call to your own, one column
-- for single sentences.
--
--   $model        the folder or URI of the other model
--   $rows = 20    the number of rows
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/second_opinion.sql \
--     --param model=tests/it/goldens/tiny-distilbert --param rows=2 --format csv
--
-- score,predicted_label,other_label,other_score,sentence1,sentence2
-- 0.504,paraphrase,not_paraphrase,0.9876,"Although our room was extremely small, the people working there were as nice as can be.","The hotel room was tiny, but the staff could not have been kinder."
-- 0.5062,paraphrase,not_paraphrase,0.9943,I don't disagree with you.,I think you are right about that.
WITH
  placed AS (
    SELECT *, row_number() OVER (ORDER BY score, probabilities, sentence1) AS __place
    FROM predictions
    WHERE error IS NULL
  ),
  asked AS (SELECT *, predict($model, sentence1, sentence2) AS other FROM placed WHERE __place <= $rows)
SELECT
  round(score, 4) AS score,
  predicted_label,
  other['label'] AS other_label,
  round(other['score'], 4) AS other_score,
  sentence1,
  sentence2
FROM asked
ORDER BY __place

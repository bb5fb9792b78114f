-- Which rows are worth labelling? Those with the lowest scores, equally many per predicted label.
--
-- Reads the table predictions; needs no gold labels. Returns all columns of the source query; -o FILE.csv writes a list
-- to fill in.
--
--   $rows = 20       the number of rows
--   $below = 1.0     the upper bound of the score
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/uncertain.sql --param rows=4 --format csv
--
-- score,predicted_label,id,sentence1,sentence2,category,label
-- 0.504,paraphrase,q0034,"Although our room was extremely small, the people working there were as nice as can be.","The hotel room was tiny, but the staff could not have been kinder.",product,paraphrase
-- 0.5166,not_paraphrase,q0491,What he said was the truth as far as he knew it.,He was not telling lies.,negation,paraphrase
-- 0.5062,paraphrase,q0412,I don't disagree with you.,I think you are right about that.,negation,paraphrase
-- 0.53,not_paraphrase,q0509,The airline lost my suitcase; whom do I turn to?,What may I carry in my hand luggage?,question,not_paraphrase
WITH
  placed AS (
    SELECT *, row_number() OVER (PARTITION BY predicted_label ORDER BY score, probabilities) AS __place
    FROM predictions
    WHERE score < $below
  ),
  taken AS (SELECT *, row_number() OVER (ORDER BY __place, score, predicted_label) AS __turn FROM placed)
SELECT
  round(score, 4) AS score,
  predicted_label,
  * EXCLUDE (score, predicted_label, probabilities, truncated, error, raw_probabilities, model, __place, __turn)
FROM taken
ORDER BY __turn
LIMIT $rows

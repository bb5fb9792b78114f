-- Which mistakes have the highest scores?
--
-- Reads the table predictions with the columns label and predicted_label (of the same type). Returns all columns of the
-- source query.
--
--   $rows = 10      the number of rows
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/worst_mistakes.sql --param rows=3 --format csv
--
-- score,predicted_label,id,sentence1,sentence2,category,label
-- 0.9875,paraphrase,q0315,"Honey dissolves in tea, and so does sugar, only more slowly.","Sugar dissolves in tea, and so does honey, only more slowly.",shared_words,not_paraphrase
-- 0.9875,paraphrase,q0515,"Doctors say the new flu strain is milder than last year's, although it spreads just as fast.","The new flu strain is just as mild as last year's but spreads faster, doctors say.",news,not_paraphrase
-- 0.9875,paraphrase,q0119,Velodrine reported a loss of 3.2 million dollars for the first quarter.,"For the first quarter, Velodrine posted a loss of 2.3 million dollars.",numbers,not_paraphrase
WITH placed AS (
  SELECT *, row_number() OVER (ORDER BY score DESC, probabilities, label) AS __place
  FROM predictions
  WHERE predicted_label <> label
)
SELECT
  round(score, 4) AS score,
  predicted_label,
  * EXCLUDE (score, predicted_label, probabilities, truncated, error, raw_probabilities, model, __place)
FROM placed
ORDER BY __place
LIMIT $rows

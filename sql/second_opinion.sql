-- What does another model say of the rows of which this one is least sure? It is asked here and now, by predict().
--
-- Reads the table predictions with the columns sentence1 and sentence2; write your own in the call, one for single
-- sentences.
--
--   $model        the folder or URI of the other model
--   $rows = 20    how many rows to ask about
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/second_opinion.sql --param model=models/other
WITH
  unsure AS (
    SELECT * FROM predictions WHERE error IS NULL ORDER BY score, probabilities LIMIT $rows
  ),
  asked AS (
    SELECT *, predict($model, sentence1, sentence2) AS other FROM unsure
  )
SELECT
  round(score, 4) AS score,
  predicted_label,
  other['label'] AS other_label,
  round(other['score'], 4) AS other_score,
  sentence1,
  sentence2
FROM asked
ORDER BY asked.score, sentence1

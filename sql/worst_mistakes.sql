-- Where was the model surest, and wrong?
--
-- Reads the table predictions with the columns label, sentence1 and sentence2.
--
--   couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/worst_mistakes.sql
SELECT round(score, 4) AS score, label, predicted_label, sentence1, sentence2
FROM predictions
WHERE predicted_label <> label
ORDER BY score DESC, sentence1
LIMIT 10

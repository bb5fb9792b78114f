-- The rows to score, one per pair. All columns go into the output, followed by the predictions.
--
-- `id` identifies a row, and pipeline.toml names the text columns. Any SELECT works: filter, or join other tables of
-- [tables]. A name in braces is a variable, set with --var NAME=VALUE on the command line.
SELECT id, sentence1, sentence2, topic, label
FROM pairs

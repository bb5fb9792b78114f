-- What is scored: one row a pair. All columns go into the output, and the predictions come behind them.
--
-- `id` names a row once, and pipeline.toml says which columns are the texts. Any SELECT does: join other tables of
-- [tables], or filter; a name between braces stands for what --var NAME=VALUE gives on the command line.
SELECT id, sentence1, sentence2, topic, label
FROM pairs

-- How fast were the runs, and what did packing save? One row per run, newest first.
--
-- Reads the table runs of --pipeline. Runs that scored nothing, because all scores were cached, have no speed. Columns
-- are NULL for runs of versions of couplet that did not record them.
--
--   $rows = 30      the number of runs
--
--   couplet query --pipeline P.toml -f sql/throughput.sql
--
-- +----------------------+---------+-----------+-------------+-----------------+---------------+---------+-----------------+-------------------+-------------------------+------------------+-----------+
-- | started              | outcome | rows_read | rows_scored | rows_remembered | rows_rejected | seconds | rows_per_second | tokens_per_second | padding_avoided_percent | model            | precision |
-- +----------------------+---------+-----------+-------------+-----------------+---------------+---------+-----------------+-------------------+-------------------------+------------------+-----------+
-- | 2026-11-24T17:18:50Z | done    | 1500      | 1498        | 0               | 0             | 4.8     | 349.0           | 23761.0           | 29.9                    | 2a8e8caca4b7a9bf | f32       |
-- +----------------------+---------+-----------+-------------+-----------------+---------------+---------+-----------------+-------------------+-------------------------+------------------+-----------+
SELECT
  date_trunc('second', started_at) AS started,
  outcome,
  rows_read,
  rows_scored,
  rows_remembered,
  rows_rejected,
  round(seconds, 1) AS seconds,
  CASE WHEN rows_scored > 0 THEN round(rows_scored / nullif(scoring_seconds, 0), 0) END AS rows_per_second,
  CASE WHEN tokens > 0 THEN round(tokens / nullif(scoring_seconds, 0), 0) END AS tokens_per_second,
  round(100.0 * padding_avoided / nullif(padding_avoided + tokens_in_rows, 0), 1) AS padding_avoided_percent,
  substr(model, 1, 16) AS model,
  precision
FROM runs
ORDER BY runs.started_at DESC
LIMIT $rows

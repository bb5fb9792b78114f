-- On which rows is a regression farthest from the gold label?
--
-- Reads the table predictions of a regression, with the columns label (a number) and score. Returns all columns
-- of the source query.
--
--   $rows = 10      the number of rows
--
--   couplet query --pipeline P.toml -f sql/regression_worst.sql --param rows=2 --format csv
--
-- difference,score,id,sentence1,sentence2,label
-- -3.3849,1.6151,38,A man plays the piano.,A man is playing a piano.,5.0
-- 3.308,3.308,729,"First of all, as a general matter of fact you suppose to change your workout routine in every 3-4 weeks.","You can mix those, but in my experience, it will be very difficult at first.",0.0
WITH placed AS (
  SELECT
    *,
    CAST(score AS DOUBLE) - CAST(label AS DOUBLE) AS difference,
    row_number() OVER (ORDER BY abs(CAST(score AS DOUBLE) - CAST(label AS DOUBLE)) DESC, label) AS __place
  FROM predictions
  WHERE label IS NOT NULL AND score IS NOT NULL
)
SELECT
  round(difference, 4) AS difference,
  round(score, 4) AS score,
  * EXCLUDE (
    difference, score, predicted_label, probabilities, truncated, error, raw_probabilities, model, __place
  )
FROM placed
ORDER BY __place
LIMIT $rows

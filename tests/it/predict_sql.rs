//! `predict()` in SQL: for any shape of query, the result is right and each row is scored once.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use couplet::predict::Models;
use couplet::scorer::{Counts, Pool};
use couplet::session;
use couplet::tables::table_from_uri;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;

use crate::support::{golden, resources, write};

/// The number of rows in the table `t`, all distinct.
const ROWS: u64 = 40;

struct Session {
    context: SessionContext,
    models: Arc<Models>,
    _folder: tempfile::TempDir,
}

/// A session over `t` (id, a, b, grp) with small windows and two partitions, so that plans are parallel.
async fn session() -> Session {
    let folder = tempfile::tempdir().unwrap();
    let mut csv = String::from("id,a,b,grp\n");
    for id in 0..ROWS {
        csv.push_str(&format!("{id},the {id} men went,a man of {id} times,{}\n", id % 4));
    }
    write(&folder.path().join("t.csv"), csv);
    let table = table_from_uri("t", folder.path().join("t.csv").to_str().unwrap()).unwrap();
    let models = Arc::new(Models::new(Pool::new(Some(2)).unwrap(), golden("")));
    let context = session::open(&[table], Arc::clone(&models), 16, 2, &resources()).await.unwrap();
    Session { context, models, _folder: folder }
}

impl Session {
    async fn sql(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.context.sql(&sql.replace("$M", "tiny-bert")).await?.collect().await
    }

    fn counts(&self) -> Counts {
        let counts = self.models.counts();
        assert_eq!(counts.len(), 1, "{counts:?}");
        counts[0].1.clone()
    }
}

fn text(batches: &[RecordBatch]) -> String {
    pretty_format_batches(batches).unwrap().to_string()
}

/// Executes a query in a new session. Returns its rows and the number of texts that the encoder read.
async fn scored(sql: &str) -> (Vec<RecordBatch>, u64) {
    let session = session().await;
    let batches = session.sql(sql).await.unwrap_or_else(|e| panic!("{sql}\n{e}"));
    (batches, session.counts().scored)
}

fn rows(batches: &[RecordBatch]) -> u64 {
    batches.iter().map(|batch| batch.num_rows() as u64).sum()
}

/// The query with its predictions replaced by those of a table that was scored beforehand.
async fn expected(sql: &str) -> String {
    let session = session().await;
    session.sql("CREATE TABLE scored AS SELECT *, predict('$M', a, b) AS p FROM t").await.unwrap();
    text(&session.sql(sql).await.unwrap_or_else(|e| panic!("{sql}\n{e}")))
}

/// Query shapes, each with an equivalent query of a table of predictions and the number of rows to score.
const SHAPES: &[(&str, &str, u64)] = &[
    (
        "SELECT p['label'] AS l, p['score'] AS s FROM (SELECT id, predict('$M', a, b) AS p FROM t) ORDER BY id",
        "SELECT p['label'] AS l, p['score'] AS s FROM scored ORDER BY id",
        ROWS,
    ),
    (
        "SELECT id, predict('$M', a, b)['label'], predict('$M', a, b)['score'] FROM t ORDER BY id",
        "SELECT id, p['label'] AS \"predict(Utf8(\"\"tiny-bert\"\"),t.a,t.b)[label]\", p['score'] AS \"predict(Utf8(\"\"tiny-bert\"\"),t.a,t.b)[score]\" FROM scored ORDER BY id",
        ROWS,
    ),
    (
        "SELECT o['label'] AS l, n['label'] AS m, count(*) AS k FROM (SELECT predict('$M', a, b) AS o, predict('$M', a, b) AS n FROM t) GROUP BY l, m ORDER BY l",
        "SELECT p['label'] AS l, p['label'] AS m, count(*) AS k FROM scored GROUP BY l, m ORDER BY l",
        ROWS,
    ),
    (
        "SELECT id FROM t WHERE predict('$M', a, b)['score'] > 0.9 ORDER BY id",
        "SELECT id FROM scored WHERE p['score'] > 0.9 ORDER BY id",
        ROWS,
    ),
    (
        "SELECT id, predict('$M', a, b)['label'] AS l FROM t WHERE predict('$M', a, b)['score'] > 0.9 ORDER BY id",
        "SELECT id, p['label'] AS l FROM scored WHERE p['score'] > 0.9 ORDER BY id",
        ROWS,
    ),
    (
        "SELECT predict('$M', a, b)['label'] AS l, count(*) AS n FROM t GROUP BY predict('$M', a, b)['label'] ORDER BY l",
        "SELECT p['label'] AS l, count(*) AS n FROM scored GROUP BY p['label'] ORDER BY l",
        ROWS,
    ),
    (
        "SELECT predict('$M', a, b)['label'] AS l, count(*) AS n FROM t GROUP BY l HAVING count(*) > 1 ORDER BY n, l",
        "SELECT p['label'] AS l, count(*) AS n FROM scored GROUP BY l HAVING count(*) > 1 ORDER BY n, l",
        ROWS,
    ),
    (
        "SELECT grp, avg(predict('$M', a, b)['score']) AS m, max(predict('$M', a, b)['score']) AS x FROM t GROUP BY grp ORDER BY grp",
        "SELECT grp, avg(p['score']) AS m, max(p['score']) AS x FROM scored GROUP BY grp ORDER BY grp",
        ROWS,
    ),
    (
        "SELECT id FROM t ORDER BY predict('$M', a, b)['score'] DESC, id LIMIT 5",
        "SELECT id FROM scored ORDER BY p['score'] DESC, id LIMIT 5",
        ROWS,
    ),
    (
        "SELECT id, predict('$M', a, b)['score'] AS s FROM t ORDER BY s DESC, id LIMIT 5",
        "SELECT id, p['score'] AS s FROM scored ORDER BY s DESC, id LIMIT 5",
        ROWS,
    ),
    (
        "SELECT x.id, x.p['label'] AS l, y.grp FROM (SELECT id, predict('$M', a, b) AS p FROM t) x JOIN t y ON x.id = y.id WHERE x.p['score'] > 0.5 ORDER BY x.id",
        "SELECT id, p['label'] AS l, grp FROM scored WHERE p['score'] > 0.5 ORDER BY id",
        ROWS,
    ),
    (
        "SELECT x.id FROM t x JOIN t y ON x.id = y.id AND predict('$M', x.a, x.b)['score'] > 0.9 ORDER BY x.id",
        "SELECT id FROM scored WHERE p['score'] > 0.9 ORDER BY id",
        ROWS,
    ),
    (
        "SELECT x.id FROM t x JOIN t y ON x.id = y.id AND predict('$M', x.a, y.b)['score'] > 0.9 ORDER BY x.id",
        "SELECT id FROM scored WHERE p['score'] > 0.9 ORDER BY id",
        ROWS,
    ),
    (
        "SELECT y.id FROM t x RIGHT JOIN t y ON x.id = y.id AND predict('$M', y.a, y.b)['score'] > 0.9 WHERE x.id IS NULL ORDER BY y.id",
        "SELECT id FROM scored WHERE p['score'] <= 0.9 ORDER BY id",
        ROWS,
    ),
    (
        "SELECT id, CASE WHEN grp = 0 THEN predict('$M', a, b)['label'] ELSE 'none' END AS l FROM t ORDER BY id",
        "SELECT id, CASE WHEN grp = 0 THEN p['label'] ELSE 'none' END AS l FROM scored ORDER BY id",
        ROWS,
    ),
    (
        "WITH s AS (SELECT id, predict('$M', a, b) AS p FROM t) SELECT u.id, u.p['label'] AS l, v.p['score'] AS s FROM s u JOIN s v ON u.id = v.id ORDER BY u.id",
        "SELECT id, p['label'] AS l, p['score'] AS s FROM scored ORDER BY id",
        ROWS,
    ),
    (
        "SELECT id, predict('$M', a, b)['label'] AS l FROM t WHERE grp = 1 ORDER BY id",
        "SELECT id, p['label'] AS l FROM scored WHERE grp = 1 ORDER BY id",
        ROWS / 4,
    ),
    (
        "SELECT id, p['label'] AS l FROM (SELECT id, grp, predict('$M', a, b) AS p FROM t) WHERE grp = 1 AND p['score'] > 0 ORDER BY id",
        "SELECT id, p['label'] AS l FROM scored WHERE grp = 1 ORDER BY id",
        ROWS / 4,
    ),
    (
        "SELECT id, row_number() OVER (PARTITION BY predict('$M', a, b)['label'] ORDER BY id) AS n FROM t ORDER BY id",
        "SELECT id, row_number() OVER (PARTITION BY p['label'] ORDER BY id) AS n FROM scored ORDER BY id",
        ROWS,
    ),
    (
        "SELECT DISTINCT predict('$M', a, b)['label'] AS l FROM t ORDER BY l",
        "SELECT DISTINCT p['label'] AS l FROM scored ORDER BY l",
        ROWS,
    ),
    (
        "SELECT id, predict('$M', a, b)['label'] AS l FROM t WHERE grp = 0 UNION ALL SELECT id, predict('$M', a, b)['label'] FROM t WHERE grp <> 0 ORDER BY id",
        "SELECT id, p['label'] AS l FROM scored ORDER BY id",
        ROWS,
    ),
    (
        "SELECT count(*) AS n FROM t WHERE predict('$M', a, b)['score'] > (SELECT avg(predict('$M', a, b)['score']) FROM t)",
        "SELECT count(*) AS n FROM scored WHERE p['score'] > (SELECT avg(p['score']) FROM scored)",
        ROWS,
    ),
    (
        "SELECT id FROM t WHERE id IN (SELECT id FROM t WHERE predict('$M', a, b)['label'] = 'neutral') ORDER BY id",
        "SELECT id FROM scored WHERE p['label'] = 'neutral' ORDER BY id",
        ROWS,
    ),
    (
        "SELECT id, p['probabilities'][1] AS q FROM (SELECT id, predict('$M', a, b) AS p FROM t) ORDER BY id",
        "SELECT id, p['probabilities'][1] AS q FROM scored ORDER BY id",
        ROWS,
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_query_shape_scores_each_row_once() {
    for (sql, reference, rows_to_score) in SHAPES {
        let (batches, scored) = scored(sql).await;
        assert_eq!(text(&batches), expected(reference).await, "{sql}");
        assert_eq!(scored, *rows_to_score, "rows scored by {sql}");
    }
}

/// Queries that need several rewrites at once, each with an equivalent query of a table.
const TOGETHER: &[(&str, &str)] = &[
    (
        "SELECT predict('$M', predict('$M', a, b)['label'])['label'] AS l, count(*) AS n FROM t GROUP BY 1 ORDER BY 1",
        "SELECT predict('$M', p['label'])['label'] AS l, count(*) AS n FROM scored GROUP BY 1 ORDER BY 1",
    ),
    (
        "SELECT id FROM t ORDER BY predict('$M', predict('$M', a, b)['label'])['score'], id LIMIT 5",
        "SELECT id FROM (SELECT id, predict('$M', p['label']) AS q FROM scored) ORDER BY q['score'], id LIMIT 5",
    ),
    (
        "SELECT x.id FROM t x JOIN t y ON x.id = y.id AND predict('$M', x.a, y.b)['score'] > 0.5 AND predict('$M', x.a, x.b)['score'] < 0.9 ORDER BY x.id",
        "SELECT id FROM scored WHERE p['score'] > 0.5 AND p['score'] < 0.9 ORDER BY id",
    ),
    (
        "SELECT y.* FROM (SELECT id, b AS c FROM t) x RIGHT SEMI JOIN t y ON x.id = y.id AND predict('$M', x.c)['score'] > 0 AND predict('$M', y.a, y.b)['score'] > 0.5 ORDER BY y.id",
        "SELECT id, a, b, grp FROM scored WHERE p['score'] > 0.5 ORDER BY id",
    ),
    (
        "SELECT DISTINCT ON (predict('$M', a, b)['label']) id, predict('$M', a, b)['label'] AS l FROM t ORDER BY predict('$M', a, b)['label'], id",
        "SELECT DISTINCT ON (p['label']) id, p['label'] AS l FROM scored ORDER BY p['label'], id",
    ),
    (
        "SELECT id, (SELECT max(predict('$M', u.a, u.b)['score']) FROM t u WHERE u.id = t.id) AS s FROM t ORDER BY id",
        "SELECT id, p['score'] AS s FROM scored ORDER BY id",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn nested_calls_in_joins_and_subqueries_give_the_right_rows() {
    for (sql, reference) in TOGETHER {
        let (batches, _) = scored(sql).await;
        assert_eq!(text(&batches), expected(reference).await, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_scored_once_per_row() {
    let session = session().await;
    session.sql("CREATE VIEW v AS SELECT id, predict('$M', a, b) AS p FROM t").await.unwrap();
    let batches =
        session.sql("SELECT p['label'], p['score'] FROM v WHERE p['score'] > 0 ORDER BY p['score']").await.unwrap();
    assert_eq!((rows(&batches), session.counts().scored), (ROWS, ROWS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_ends_the_scoring_early() {
    let (batches, scored) = scored("SELECT predict('$M', a, b)['label'] FROM t LIMIT 3").await;
    assert_eq!(rows(&batches), 3);
    assert!(scored <= 16, "{scored} rows were scored for 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn single_texts_and_pairs_are_scored_separately() {
    let session = session().await;
    let batches =
        session.sql("SELECT predict('$M', 'a man') AS p, predict('$M', 'a man', 'a man') AS q").await.unwrap();
    assert_eq!(rows(&batches), 1);
    assert_eq!(session.counts().scored, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn unscorable_texts_get_an_error_and_the_query_continues() {
    let session = session().await;
    let sql = "SELECT predict('$M', x, y)['label'] IS NULL AS unscored, predict('$M', x, y)['error'] AS error FROM (VALUES ('a man', NULL), (NULL, 'a man'), (' ', 'a man'), ('a man', '')) AS v(x, y)";
    insta::assert_snapshot!(text(&session.sql(sql).await.unwrap()), @r"
    +----------+-------------------+
    | unscored | error             |
    +----------+-------------------+
    | true     | text_pair is NULL |
    | true     | text is NULL      |
    | true     | text is empty     |
    | false    |                   |
    +----------+-------------------+
    ");
}

async fn message(sql: &str) -> String {
    session().await.sql(sql).await.unwrap_err().find_root().message().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named() {
    insta::assert_snapshot!(message("SELECT predict(a, a, b) FROM t").await, @"the first argument of predict names the model and must be a string such as 'models/mrpc', not t.a; the texts come after it");
    insta::assert_snapshot!(
        message("SELECT x.id FROM t x LEFT JOIN t y ON predict('$M', x.a, y.b)['score'] > 0.9").await,
        @"predict over columns of both sides in the condition of a Left join; call it in a SELECT over the join"
    );
    insta::assert_snapshot!(
        message("SELECT id FROM t WHERE EXISTS (SELECT 1 FROM t u WHERE predict('$M', t.a, u.b)['score'] > 0.1)").await,
        @"predict over columns of an outer query; join the tables, and call it in a SELECT over the join"
    );
    let missing = message("SELECT predict('no-such-model', a, b) FROM t").await;
    let missing = missing.replace(golden("").to_str().unwrap(), "GOLDENS/");
    insta::assert_snapshot!(missing, @"model GOLDENS/no-such-model does not exist; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin");
}

#[test]
fn the_golden_models_exist() {
    assert!(Path::new(&golden("tiny-bert/model.safetensors")).exists());
}

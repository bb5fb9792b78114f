//! Models with one logit: the score equals that of `CrossEncoder` in sentence-transformers; the logit is a second
//! column.

use candle_core::Device;
use couplet::model::{Model, Problem, ScoreActivation};
use couplet::train::statistics::labels::Labels;
use couplet::train::statistics::task::Task;
use serde_json::{Value, json};

use crate::support::{Job, couplet, golden, stderr_of, stdout_of};
use crate::tiny::{Variant, logits};

const IDENTITY: &str = "torch.nn.modules.linear.Identity";
const SIGMOID: &str = "torch.nn.modules.activation.Sigmoid";
const SETTINGS: &str = "config_sentence_transformers.json";

/// tiny-bert with one output.
fn one_logit() -> Variant {
    Variant::of("tiny-bert").with_outputs(1).without_config("id2label").without_config("label2id")
}

fn score_of(variant: &Variant) -> (Problem, ScoreActivation) {
    let model = variant.load().unwrap();
    assert!(model.config.labels.is_empty());
    (model.config.problem, model.config.score)
}

#[test]
fn the_score_uses_the_configured_activation() {
    use ScoreActivation::{Identity, Sigmoid};
    let nested = |class: &str| json!({ "activation_fn": class, "version": "5.1.0" });
    let settings = |class: Value| json!({ "activation_fn": class, "prompts": {} }).to_string();
    let cases = [
        (one_logit(), Sigmoid),
        (one_logit().with_config("problem_type", "single_label_classification".into()), Sigmoid),
        (one_logit().with_config("problem_type", "regression".into()), Identity),
        (one_logit().with_config("sentence_transformers", nested(IDENTITY)), Identity),
        (one_logit().with_config("sentence_transformers", nested(SIGMOID)), Sigmoid),
        (one_logit().with_config("sentence_transformers", json!({ "version": "5.1.0" })), Sigmoid),
        (one_logit().with_config("sbert_ce_default_activation_function", IDENTITY.into()), Identity),
        (one_logit().with_config("sbert_ce_default_activation_function", Value::Null), Sigmoid),
        // The configured activation applies to any problem type.
        (
            one_logit()
                .with_config("problem_type", "regression".into())
                .with_config("sentence_transformers", nested(SIGMOID)),
            Sigmoid,
        ),
        (
            one_logit()
                .with_config("problem_type", "multi_label_classification".into())
                .with_config("sentence_transformers", nested(IDENTITY)),
            Identity,
        ),
        // The file of sentence-transformers takes precedence.
        (one_logit().with(SETTINGS, settings(IDENTITY.into())), Identity),
        (one_logit().with(SETTINGS, settings(Value::Null)), Sigmoid),
        (
            one_logit().with(SETTINGS, settings(SIGMOID.into())).with_config("sentence_transformers", nested(IDENTITY)),
            Sigmoid,
        ),
    ];
    for (i, (variant, expected)) in cases.iter().enumerate() {
        assert_eq!(score_of(variant), (Problem::Regression, *expected), "case {i}");
    }
}

#[test]
fn a_multi_label_model_with_one_label_keeps_its_name() {
    let model = one_logit().with_config("problem_type", "multi_label_classification".into()).load().unwrap();
    assert_eq!((model.config.problem, &model.config.labels[..]), (Problem::MultiLabel, &["LABEL_0".to_owned()][..]));
}

#[test]
fn unknown_activations_are_reported_with_file_and_value() {
    let with =
        |class: Value| one_logit().with_config("sentence_transformers", json!({ "activation_fn": class })).error();
    insta::assert_snapshot!(with("torch.nn.modules.activation.Tanh".into()), @r#"MODEL/config.json: key `sentence_transformers.activation_fn`: expected "torch.nn.modules.linear.Identity" or "torch.nn.modules.activation.Sigmoid", found "torch.nn.modules.activation.Tanh""#);
    insta::assert_snapshot!(with(json!(7)), @r#"MODEL/config.json: key `sentence_transformers.activation_fn`: expected "torch.nn.modules.linear.Identity" or "torch.nn.modules.activation.Sigmoid", found 7"#);
    let old = one_logit().with_config("sbert_ce_default_activation_function", "mine.Activation".into());
    insta::assert_snapshot!(old.error(), @r#"MODEL/config.json: key `sbert_ce_default_activation_function`: expected "torch.nn.modules.linear.Identity" or "torch.nn.modules.activation.Sigmoid", found "mine.Activation""#);
    let unknown = one_logit().with(SETTINGS, json!({ "activation_fn": "mine.Activation" }).to_string());
    insta::assert_snapshot!(unknown.error(), @r#"MODEL/config_sentence_transformers.json: key `activation_fn`: expected "torch.nn.modules.linear.Identity" or "torch.nn.modules.activation.Sigmoid", found "mine.Activation""#);
    let message = stderr_of(couplet().args(["predict", "a", "b", "--model"]).arg(unknown.folder()), 2);
    assert!(message.contains("mine.Activation"), "{message}");
    // With more than one logit, the outputs are always probabilities.
    let labels =
        Variant::of("tiny-bert").with_config("sentence_transformers", json!({ "activation_fn": "mine.Activation" }));
    assert_eq!(logits(&labels.load().unwrap()), logits(&Model::load(&golden("tiny-bert"), &Device::Cpu).unwrap()));
}

#[test]
fn the_activation_is_a_part_of_the_fingerprint() {
    let of = |variant: Variant| variant.load().unwrap().fingerprint;
    let (plain, identity) =
        (of(one_logit()), of(one_logit().with(SETTINGS, json!({ "activation_fn": IDENTITY }).to_string())));
    let sigmoid = of(one_logit().with(SETTINGS, json!({ "activation_fn": SIGMOID }).to_string()));
    assert!(plain != identity && identity != sigmoid && plain != sigmoid);
    // Settings that do not apply to a model with labels change nothing.
    let labels = Variant::of("tiny-bert").with(SETTINGS, json!({ "activation_fn": IDENTITY }).to_string());
    assert_eq!(of(labels), of(Variant::of("tiny-bert")));
}

#[test]
fn every_output_has_the_logit_beside_the_score() {
    let pairs = "id,a,b\n1,The man went home.,He was at home by then!\n2,yes,no\n";
    for (activation, variant) in [
        (ScoreActivation::Sigmoid, one_logit()),
        (ScoreActivation::Identity, one_logit().with_config("problem_type", "regression".into())),
    ] {
        let folder = format!("{:?}", variant.folder());
        let job = Job::new(pairs).change(&format!("{:?}", golden("tiny-distilbert")), &folder);
        let rows = job.rows();
        let sql = format!(
            "SELECT p['score'] AS score, p['raw_probabilities'] AS raw FROM (SELECT predict({}, 'yes', 'no') AS p)",
            folder.replace('"', "'")
        );
        let function: Value =
            serde_json::from_str(&stdout_of(couplet().args(["query", "--format", "json", &sql]))).unwrap();
        let command = stdout_of(couplet().args(["predict", "yes", "no", "--json", "--model"]).arg(variant.folder()));
        let command: Value = serde_json::from_str(&command).unwrap();
        let number = |value: &Value| value.as_f64().unwrap() as f32;
        let score = number(&rows[1]["score"]);
        assert_eq!(score, number(&function[0]["score"]));
        assert_eq!(score, number(&command["score"]));
        assert!(rows[1]["predicted_label"].is_null() && rows[1]["probabilities"].is_null());
        let (of_table, of_function) = (&rows[1]["raw_probabilities"], &function[0]["raw"]);
        let of_command = &command["raw_probabilities"];
        match activation {
            ScoreActivation::Identity => assert!(of_table.is_null() && of_function.is_null() && of_command.is_null()),
            ScoreActivation::Sigmoid => {
                let logit = number(&of_table[0]);
                assert!((score - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6, "{score} of {logit}");
                assert_eq!((logit, logit), (number(&of_function[0]), number(&of_command["logit"])));
            }
        }
        let card = stdout_of(couplet().args(["model", "show"]).arg(variant.folder()));
        let line = match activation {
            ScoreActivation::Identity => "score         the logit",
            ScoreActivation::Sigmoid => "score         the sigmoid of the logit",
        };
        assert!(card.contains(line), "{card}");
    }
}

#[test]
fn a_trained_regression_records_its_activation() {
    let keys = Value::Object(Labels::given(Task::Regression, vec![]).unwrap().config_keys());
    assert_eq!(keys["problem_type"], "regression");
    assert_eq!(keys["sentence_transformers"]["activation_fn"], IDENTITY);
    let keys = Labels::given(Task::Classification, vec!["no".into(), "yes".into()]).unwrap().config_keys();
    assert!(!keys.contains_key("sentence_transformers"));
}

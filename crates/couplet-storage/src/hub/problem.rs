//! Explains problems with a hub or its models, and how to fix them.

use std::time::Duration;

use hf_hub::api::tokio::ApiError;

use super::api::{Hub, Listing};
use super::settings::OFFLINE;
use crate::hub::Needed;
use crate::objects::{ObjectsError, Trouble};
use crate::place::{HubModel, Place};
use crate::trouble::causes;
use crate::words::closest;

/// Weight files that couplet does not read: their suffixes and formats.
const OTHER_WEIGHTS: [(&str, &str); 7] = [
    (".h5", "TensorFlow"),
    (".msgpack", "Flax"),
    (".ckpt.index", "TensorFlow 1"),
    (".onnx", "ONNX"),
    (".gguf", "GGUF"),
    (".ot", "rust-bert"),
    (".mlmodel", "Core ML"),
];

/// Checks that a model can be loaded from the folder.
pub(super) fn check(model: &HubModel, listing: &Listing, names: &[&str]) -> Result<(), ObjectsError> {
    let missing = |problem: String| Err(ObjectsError::new(&Place::Hub(model.clone()), Trouble::Missing, problem));
    let commit = &listing.commit[..listing.commit.len().min(12)];
    let has_folder = |folders: &[&str]| match folders {
        [] => String::new(),
        [only] => format!("; there is a model in its folder {only}: {}", model.with_folder(only)),
        folders => format!("; there are models in its folders {}", folders.join(", ")),
    };
    let folders = listing.model_folders();
    if names.is_empty() {
        let folder = model.folder();
        if folder.is_empty() {
            return missing(format!("the repository has no files at commit {commit}{}", has_folder(&folders)));
        }
        let near = closest(folder, folders.iter().copied());
        let near =
            near.map_or_else(|| has_folder(&folders), |near| format!("; did you mean {}?", model.with_folder(near)));
        return missing(format!("the repository has no folder `{folder}` at commit {commit}{near}"));
    }
    let missing_file = Needed::among(names).first_missing();
    match missing_file {
        None => Ok(()),
        Some("config.json") if names.contains(&"adapter_config.json") => missing(
            "it is an adapter (PEFT), not a model: merge it into its base with `merge_and_unload()` and \
             `save_pretrained` the result"
                .into(),
        ),
        Some("config.json") => missing(format!(
            "it has no config.json at commit {commit}, so it is not a model as transformers saves one{}",
            has_folder(&folders)
        )),
        Some("tokenizer.json or vocab.txt") => {
            let other = ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "merges.txt"];
            let other = other.iter().find(|name| names.contains(*name));
            let other = other.map_or_else(
                || "save that of the model it was trained from beside it, with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`".to_owned(),
                |name| format!("its tokenizer is {name}, of another family than BERT"),
            );
            missing(format!("it has no tokenizer, which is tokenizer.json or vocab.txt: {other}"))
        }
        Some(weights) => {
            let other: Vec<(&str, &str)> = names
                .iter()
                .filter_map(|name| {
                    let (_, kind) = OTHER_WEIGHTS.iter().find(|(end, _)| name.ends_with(end))?;
                    Some((*name, *kind))
                })
                .collect();
            missing(match other.first() {
                Some((name, kind @ "TensorFlow")) => format!(
                    "its weights are {name} only, of {kind}; couplet reads {weights}: with a transformers that still has \
                     TensorFlow (4.x), `from_pretrained(…, from_tf=True)` and `save_pretrained` convert them"
                ),
                Some((name, kind)) => format!(
                    "its weights are {name} only, of {kind}; couplet reads {weights}: convert them with transformers"
                ),
                None => format!("it has no weights: couplet reads {weights}"),
            })
        }
    }
}

/// Explains an error response.
pub(super) fn from_response(
    hub: &Hub<'_>,
    status: u16,
    code: Option<&str>,
    message: Option<&str>,
    wait: Option<Duration>,
) -> ObjectsError {
    let (model, settings) = (hub.model(), hub.settings());
    let (repository, endpoint) = (model.repository(), settings.shown_endpoint());
    // The message may come from a mirror, so its length is limited.
    let response: String = message.unwrap_or_default().chars().filter(|char| !char.is_control()).take(200).collect();
    let response =
        if response.is_empty() { format!("status {status}") } else { format!("status {status}: {response}") };
    let response = wait.map_or(response.clone(), |wait| format!("{response}; retry after {} s", wait.as_secs()));
    let has_token = settings.token.is_some();
    let token = "set HF_TOKEN, or log in once with `hf auth login`";
    let page = format!("{endpoint}/{repository}");
    let (trouble, problem) = match (status, code) {
        (_, Some("GatedRepo")) if has_token => (
            Trouble::Refused,
            format!("the model is gated and the token's owner has no access yet; ask for it at {page} and run again"),
        ),
        (_, Some("GatedRepo")) => {
            (Trouble::Refused, format!("the model is gated: accept its conditions at {page}, then {token}"))
        }
        (_, Some("DisabledRepo")) => (Trouble::Refused, format!("the hub has disabled this repository ({response})")),
        (404, Some("RevisionNotFound")) => (
            Trouble::Missing,
            format!("the repository has no branch, tag or commit `{}`; see {page}/tree/main", model.revision()),
        ),
        (404, Some("EntryNotFound")) => (Trouble::Missing, "a file in the hub's list does not exist; run again".into()),
        // Without a token, the hub does not tell a private repository from one that does not exist.
        (401, Some("RepoNotFound") | None) if !has_token => (
            Trouble::Missing,
            format!(
                "{endpoint} has no repository {repository} that everybody may read; check the name, or, if it is private, {token}"
            ),
        ),
        (401, code) if code != Some("RepoNotFound") => (
            Trouble::Refused,
            format!(
                "{endpoint} does not accept the token ({response}); check HF_TOKEN or the file that `hf auth login` writes"
            ),
        ),
        (401 | 404, _) => {
            let private = if has_token { "the token may not read it" } else { token };
            (
                Trouble::Missing,
                format!("{endpoint} has no repository {repository}; check the name; if it is private, {private}"),
            )
        }
        (403, _) => {
            (Trouble::Refused, format!("{endpoint} refuses access ({response}); the token may not read {repository}"))
        }
        (429, _) => {
            (Trouble::Unreachable, format!("{endpoint} received too many requests ({response}); wait, or {token}"))
        }
        (500.., _) => (Trouble::Unreachable, format!("{endpoint} failed, even after retries ({response})")),
        _ => (Trouble::Other, format!("{endpoint} sent a response that couplet does not understand ({response})")),
    };
    hub.error(trouble, problem)
}

/// Explains a request that got no response, or only a part of one.
pub(super) fn from_network_error(hub: &Hub<'_>, error: &ApiError) -> ObjectsError {
    let endpoint = hub.settings().shown_endpoint();
    let ApiError::RequestError(request) = error else {
        // `hf-hub` expects headers that only hubs send.
        let problem = format!("{endpoint} is not a hub that couplet supports ({error}); check HF_ENDPOINT");
        return hub.error(Trouble::Other, problem);
    };
    if let Some(status) = request.status() {
        return from_response(hub, status.as_u16(), None, None, None);
    }
    let cause = causes(request).last().map(ToString::to_string).unwrap_or_default();
    let problem = if request.is_connect() {
        format!("{endpoint} cannot be reached ({cause}); check the network, or set {OFFLINE}=1 to use the cache alone")
    } else {
        format!("the connection to {endpoint} broke ({cause}); run again to resume")
    };
    hub.error(Trouble::Unreachable, problem)
}

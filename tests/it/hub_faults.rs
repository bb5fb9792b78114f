//! Hubs that are slow, that send something other than requested, or that must not learn a token.

use std::time::{Duration, Instant};

use crate::hub::{REPOSITORY, Setup, URI, json, of_folder};
use crate::hub_server::{Access, Ranges, TOKEN, sha256};
use crate::support::{golden, skip, write};

/// If the list has no hashes, files are requested one by one, and large ones are redirected to another host.
#[test]
fn a_token_is_not_sent_to_the_host_of_a_redirect() {
    for access in [Access::Everybody, Access::Gated] {
        let (setup, _) = Setup::new();
        setup.server.forget_hashes();
        setup.server.set_access(REPOSITORY, access);
        let output = setup.predict(URI).env("HF_TOKEN", TOKEN).output().unwrap();
        let log = setup.server.take_log();
        assert!(log.iter().any(|request| request.path.starts_with("/cdn/")), "{log:?}");
        for request in log.iter().filter(|request| request.path.starts_with("/cdn/")) {
            assert!(!request.authorized, "{request:?}");
        }
        // If the redirect itself is refused without a token, only the other host could name the content.
        assert_eq!(output.status.success(), access == Access::Everybody);
        if access == Access::Gated {
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(message.contains("neither in its list nor to requests without a token"), "{message}");
        }
    }
}

#[test]
fn the_environment_controls_whether_a_token_is_sent() {
    let (setup, _) = Setup::new();
    write(&setup.home.path().join("token"), TOKEN);
    json(setup.predict(URI).env("HF_TOKEN", TOKEN).env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"));
    assert!(setup.server.take_log().iter().all(|request| !request.authorized));
    let token_file = setup.home.path().join("elsewhere");
    write(&token_file, format!("{TOKEN}\r\n"));
    std::fs::remove_file(setup.home.path().join("token")).unwrap();
    json(setup.predict(URI).env("TOKENS", setup.home.path()).env("HF_TOKEN_PATH", "$TOKENS/elsewhere"));
    assert!(setup.server.take_log().iter().all(|request| request.authorized));
}

#[test]
fn retries_wait_as_long_as_the_hub_asks() {
    let expected = of_folder(&golden("tiny-distilbert"));
    for path in ["/api/models/", "/cdn/"] {
        for status in [429, 503] {
            let (setup, _) = Setup::new();
            setup.server.fail_for(path, status, 1, 2);
            let began = Instant::now();
            assert_eq!(json(&mut setup.predict(URI)), expected);
            assert!(began.elapsed() >= Duration::from_secs(2), "{path} {status}");
        }
    }
    // Nobody waits for an hour.
    let (setup, _) = Setup::new();
    setup.server.fail_for("/api/models/", 429, 1, 3600);
    insta::assert_snapshot!(setup.problem(&mut setup.predict(URI), 1), @r"error: model hf://org/tiny: HUB received too many requests (status 429: injected; retry after 3600 s); wait, or set HF_TOKEN, or log in once with `hf auth login`");
    assert_eq!(setup.server.take_log().len(), 1);
}

#[test]
fn a_connection_that_breaks_in_the_headers_is_retried() {
    let (setup, _) = Setup::new();
    for path in ["/api/models/", "/resolve/", "/cdn/"] {
        setup.server.hang_up(path, 2);
    }
    assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-distilbert")));
}

/// An earlier attempt is continued with the rest of the file or replaced by all of it; nothing else gets into the file.
#[test]
fn a_wrong_byte_range_is_not_used() {
    let weights = std::fs::read(golden("tiny-distilbert/model.safetensors")).unwrap();
    for ranges in [Ranges::Shifted, Ranges::Refused, Ranges::Ignored] {
        let (setup, _) = Setup::new();
        setup.server.set_ranges(ranges);
        let unfinished = setup.repository().join(format!("blobs/{}.incomplete", sha256(&weights)));
        write(&unfinished, &weights[..5000]);
        assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-distilbert")), "{ranges:?}");
        let log = setup.server.take_log();
        let from: Vec<_> =
            log.iter().filter(|request| request.path.starts_with("/cdn/")).map(|request| request.from).collect();
        // The server has sent the whole file.
        let expected: &[_] = if ranges == Ranges::Ignored { &[Some(5000)] } else { &[Some(5000), None] };
        assert_eq!(from, expected, "{ranges:?}");
        assert!(!unfinished.exists());
    }
    // Each attempt starts again and breaks at the same place; the number of attempts is limited.
    let (setup, _) = Setup::new();
    setup.server.set_ranges(Ranges::Refused);
    setup.server.cut("model.safetensors", 1000, 20);
    let problem = setup.problem(&mut setup.predict(URI), 1);
    assert!(problem.contains("broke"), "{problem}");
    assert!(setup.server.take_log().len() < 30);
}

/// The disk is a tmpfs in a mount namespace, as in `disk_full`.
#[test]
fn a_full_disk_keeps_the_partial_download() {
    let (setup, _) = Setup::new();
    let (home, mounted) = (setup.home.path().join("small"), setup.home.path().join("mounted"));
    std::fs::create_dir(&home).unwrap();
    let script = "mount -t tmpfs -o size=128k tmpfs \"$1\" && touch \"$2\" || exit 9
        HF_HOME=\"$1\" \"$3\" predict --model hf://org/tiny one two
        status=$?
        cp -a \"$1\" \"$1\".after
        exit $status";
    let mut run = std::process::Command::new("unshare");
    run.args(["-rm", "sh", "-c", script, "sh"]).arg(&home).arg(&mounted).arg(env!("CARGO_BIN_EXE_couplet"));
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        run.env_remove(name);
    }
    let output = run.env("HF_ENDPOINT", setup.server.endpoint()).env("NO_COLOR", "1").output();
    let output = match output {
        Ok(output) if mounted.exists() => output,
        _ => return skip("a_full_disk_keeps_the_partial_download", "no disk can be mounted here"),
    };
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    let place = format!("downloading model.safetensors to {}/hub: No space left", home.display());
    assert!(message.contains(&place) && message.contains("set HF_HOME or HF_HUB_CACHE to another place"), "{message}");
    // With enough space, the download resumes.
    setup.server.take_log();
    let after = setup.home.path().join("small.after");
    assert_eq!(json(setup.predict(URI).env("HF_HOME", after)), of_folder(&golden("tiny-distilbert")));
    let log = setup.server.take_log();
    let from: Vec<_> =
        log.iter().filter(|request| request.path.starts_with("/cdn/")).map(|request| request.from).collect();
    assert!(matches!(from[..], [Some(1..)]), "{from:?}");
}

#[test]
fn a_response_with_another_commit_is_refused() {
    let (setup, commit) = Setup::new();
    let wanted = "0123456789abcdef0123456789abcdef01234567";
    setup.server.name(REPOSITORY, wanted, &commit);
    let problem = setup.problem(&mut setup.predict(&format!("{URI}@{wanted}")), 1);
    assert!(problem.contains(&format!("it returned another commit than the requested one, {commit}")), "{problem}");
    assert!(!setup.repository().exists());
}

#[test]
fn messages_of_a_hub_are_escaped() {
    let (setup, _) = Setup::new();
    let config = std::fs::read_to_string(golden("tiny-distilbert/config.json")).unwrap();
    let config = config.replace("\"gelu\"", r#""\u001b]0;title\u0007\u009b2J\u202e""#);
    setup.server.commit("org/odd", &golden("tiny-distilbert"), &[("config.json", config.as_bytes())]);
    let problem = setup.problem(&mut setup.predict("hf://org/odd"), 2);
    let is_active = |char: char| char.is_control() && char != '\n' || char == '\u{202e}';
    assert!(!problem.contains(is_active) && problem.contains(r"title"), "{problem:?}");
}

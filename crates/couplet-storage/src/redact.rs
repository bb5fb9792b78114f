//! Redacts credentials in URIs: keys, passwords and signatures that users write into them.
//!
//! couplet accepts no URI with credentials, and the error that refuses one must not show it. A URI can also reach a
//! message in other ways, as a part of SQL or of a library's error. So all text that goes to stderr or into the record
//! of a run is redacted.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Matches a URI in a text. The groups are a preceding escape that starts a colour, whose last letter must not count as
/// part of the scheme; the scheme; and the rest, up to a character that cannot be part of a URI, such as the escape
/// that ends a colour.
static URI: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(\x1b\[[0-9;]*m)?([A-Za-z][A-Za-z0-9+.-]*)://([^\s"'`<>\\\x1b]+)"#)
        .expect("a pattern of this program")
});

/// Words in the query of a signed URL.
const SIGNED: [&str; 6] = ["sig=", "signature", "token", "secret", "password", "credential"];

/// Replaces secrets in the URIs of a text by `…`.
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    URI.replace_all(text, |uri: &Captures<'_>| {
        let colour = uri.get(1).map_or("", |escape| escape.as_str());
        let (scheme, rest) = (&uri[2], &uri[3]);
        let start = secret_before(scheme, rest);
        let (hidden, shown) = if start > 0 { ("…", &rest[start..]) } else { ("", rest) };
        match signed_query(scheme, shown) {
            Some(end) => format!("{colour}{scheme}://{hidden}{}?…", &shown[..end]),
            None => format!("{colour}{scheme}://{hidden}{shown}"),
        }
    })
}

/// Returns true if a URI contains something that may be secret.
#[must_use]
pub fn holds_credentials(uri: &str) -> bool {
    without_credentials(uri) != uri
}

/// Returns the number of bytes after `scheme://` that may be a key or a password: up to the last `@`, as passwords can
/// contain slashes.
fn secret_before(scheme: &str, rest: &str) -> usize {
    let scheme = scheme.to_ascii_lowercase();
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let is_bucket = ["s3", "s3a", "gs", "az", "abfs", "abfss"].contains(&scheme.as_str());
    let user = authority.split_once('@').map(|(user, _)| user);
    // A port consists of digits; a bucket has no port.
    let has_password = authority
        .split_once(':')
        .is_some_and(|(_, after)| is_bucket || rest.contains('@') && !after.bytes().all(|byte| byte.is_ascii_digit()));
    let has_user = match scheme.as_str() {
        // The part before `@` is the container of an account.
        "abfs" | "abfss" => false,
        // The part before `@` is a repository without an organisation, unless it starts like a token of the hub.
        "hf" => user.is_some_and(|user| user.starts_with("hf_")),
        _ => user.is_some(),
    };
    match rest.rfind('@') {
        Some(at) if has_password || has_user => at,
        _ if has_password => authority.len(),
        _ => 0,
    }
}

/// Returns the start of the query of a signed URL; none for other URLs, as `?` is also a pattern for one character.
fn signed_query(scheme: &str, rest: &str) -> Option<usize> {
    let start = rest.find('?')?;
    let query = rest[start..].to_ascii_lowercase();
    let is_web = scheme.to_ascii_lowercase().starts_with("http");
    (query.contains('=') && (is_web || SIGNED.iter().any(|word| query.contains(word)))).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_not_shown() {
        for (text, shown) in [
            ("s3://AKIA:secret@b/key", "s3://…@b/key"),
            ("S3://AKIA:sec/re+t@b/key.csv", "S3://…@b/key.csv"),
            ("s3://AKIA:secret/key", "s3://…/key"),
            ("table `gs://token@b/k`: \"az://a:b@c/d\"", "table `gs://…@b/k`: \"az://…@c/d\""),
            ("abfss://c:key@a.dfs.core.windows.net/k", "abfss://…@a.dfs.core.windows.net/k"),
            ("hf://user:pw@org/name", "hf://…@org/name"),
            ("hf://hf_abc@org/name", "hf://…@org/name"),
            ("https://u:p/w@host/x?a=b", "https://…@host/x?…"),
            ("https://b/x.csv?X-Amz-Signature=abc then", "https://b/x.csv?… then"),
            ("az://c/x?sv=1&sig=abc", "az://c/x?…"),
            ("\u{1b}[33mhttps://b/x?sig=abc\u{1b}[0m' found", "\u{1b}[33mhttps://b/x?…\u{1b}[0m' found"),
            ("'\u{1b}[33ms3://AKIA:secret\u{1b}[0m'", "'\u{1b}[33ms3://…\u{1b}[0m'"),
        ] {
            assert_eq!(without_credentials(text), shown, "{text}");
            assert!(holds_credentials(text));
        }
    }

    #[test]
    fn what_is_not_secret_stays() {
        for text in [
            "s3://b/dt=?/a@7.parquet",
            "abfss://container@account.dfs.core.windows.net/KEY",
            "hf://org/name@v1.0/folder",
            "hf://bert-base-uncased@v1",
            "df://HOST:PORT and df://10.0.0.7:50050",
            "http://127.0.0.1:8333/b/k",
            "file:///a:b@c",
            "out/predictions@3",
        ] {
            assert_eq!(without_credentials(text), text);
        }
    }
}

//! File names that couplet uses in a store, in this version and the previous one.

use couplet_storage::lock::LOCK;
use uuid::Uuid;

use super::own::MARKER;
use crate::delta::LOG;

/// The number of digits of a store's id.
pub(super) const ID: usize = 16;

/// Returns true for paths that couplet uses in a store. With `id`, names that have a store id must have this one.
pub(super) fn is_of_a_store(parts: &[&str], id: Option<&str>) -> bool {
    let Some((last, folders)) = parts.split_last() else { return false };
    let name = without_staging(last).unwrap_or(last);
    let own = |name: &str| id_of(name).is_some_and(|own| id.is_none_or(|id| id == own));
    let of_old = id.is_none();
    match folders {
        [] => name == MARKER || *last == LOCK || of_old && last.starts_with(".couplet-probe-") && last.len() > 40,
        ["uploads"] => {
            name.strip_suffix(".json").is_some_and(|stem| own(name) || of_old && Uuid::try_parse(stem).is_ok())
        }
        ["cluster", run] => {
            let old = |stem: &str| of_old && stem.len() >= 6 && is_number(stem);
            is_hex(run, 32) && name.strip_suffix(".parquet").is_some_and(|stem| own(name) || old(stem))
        }
        ["scores", LOG] => of_old && is_log(name),
        ["scores", model] => model.starts_with("model=") && (own(name) && is_parquet(name) || of_old && is_part(name)),
        ["runs"] => is_part(name),
        ["runs", LOG] => is_log(name),
        _ => false,
    }
}

/// Returns the final name of a file that is being written under a temporary name.
pub(super) fn without_staging(name: &str) -> Option<&str> {
    let (name, number) = name.split_once('#').or_else(|| name.split_once("%23"))?;
    (!name.is_empty() && is_number(number)).then_some(name)
}

/// Returns the store id in a file name.
pub(super) fn id_of(name: &str) -> Option<&str> {
    let (id, rest) = name.split_once('-')?;
    (is_id(id) && !rest.is_empty()).then_some(id)
}

/// Returns true if the text is a valid store id.
pub(super) fn is_id(id: &str) -> bool {
    is_hex(id, ID)
}

/// Returns true if the text has exactly `digits` hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_parquet(name: &str) -> bool {
    name.ends_with(".parquet")
}

/// Returns true for names of delta-rs data files: `part-00000-UUID-c000.snappy.parquet`.
pub(super) fn is_part(name: &str) -> bool {
    let parsed = || {
        let rest = name.strip_prefix("part-")?.strip_suffix(".parquet")?;
        let (number, rest) = rest.split_at_checked(5)?;
        let (uuid, rest) = rest.strip_prefix('-')?.split_at_checked(36)?;
        let rest = rest.strip_prefix("-c")?;
        let number_in_file = rest.split('.').next()?;
        Some(is_number(number) && Uuid::try_parse(uuid).is_ok() && is_number(number_in_file))
    };
    parsed().unwrap_or(false)
}

/// Returns true for names of files in a Delta log.
pub(super) fn is_log(name: &str) -> bool {
    if name == "_last_checkpoint" {
        return true;
    }
    let version = |rest: &str| rest.len() == 20 && is_number(rest);
    let checkpoint = |rest: &str| rest.split_once(".checkpoint").is_some_and(|(number, _)| version(number));
    name.strip_suffix(".json").is_some_and(version) || name.strip_suffix(".parquet").is_some_and(checkpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "05493cfe-fd2f-4010-81bd-9092a42365fe";
    const ID: &str = "0123456789abcdef";

    #[test]
    fn names_that_couplet_gives_are_known() {
        let run = "0".repeat(32);
        let known = |path: &str, id: Option<&str>| is_of_a_store(&path.split('/').collect::<Vec<_>>(), id);
        let log = "_delta_log/00000000000000000001.json";
        let other = "f".repeat(16);
        for path in [
            "lock.json".to_owned(),
            format!("{MARKER}#12"),
            format!("uploads/{ID}-{UUID}.json"),
            format!("cluster/{run}/{ID}-000001.parquet"),
            format!("scores/model=x/{ID}-1-{run}.parquet"),
            format!("scores/model=x/{ID}-1-{run}.parquet#1"),
            format!("runs/part-00000-{UUID}-c000.snappy.parquet"),
            format!("runs/{log}"),
            format!("runs/{log}#17046467313378935449"),
            "runs/_delta_log/_last_checkpoint".to_owned(),
            "runs/_delta_log/00000000000000000010.checkpoint.parquet".to_owned(),
        ] {
            assert!(known(&path, None) && known(&path, Some(ID)), "{path}");
            assert_eq!(known(&path, Some(&other)), !path.contains(ID), "{path}");
        }
        // Names of the previous version.
        for path in [
            format!("uploads/{UUID}.json"),
            format!(".couplet-probe-{UUID}"),
            format!("cluster/{run}/000001.parquet"),
            format!("scores/{log}"),
            format!("scores/model=x/part-00000-{UUID}-c000.snappy.parquet"),
        ] {
            assert!(known(&path, None) && !known(&path, Some(ID)), "{path}");
        }
        for path in [
            "data.csv",
            "lock.json#1",
            "uploads/letter.json",
            "uploads/a/b.json",
            "cluster/data.parquet",
            "cluster/mine/000001.parquet",
            "scores/a#1",
            "scores/model=x/a.parquet",
            "runs/part-00000-mine-c000.parquet",
            "runs/run=1/events.out",
            "other/lock.json",
        ] {
            assert!(!known(path, None), "{path}");
        }
    }
}

//! Existing output files: the attributes that their replacements keep, symlinks to them, and disks that fail.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Job, skip, stdout_of};

const PAIRS: &str = "id,a,b\n1,x,y\n2,x,y\n";

/// A user other than the one that runs the test.
const OTHER: u32 = 54_321;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs `couplet query -o` to a file of the job.
fn write(job: &Job, output: &str) -> Output {
    job.couplet(&["query", "SELECT 7 AS x", "-o", output]).output().unwrap()
}

#[test]
fn a_replaced_file_keeps_its_mode_owner_and_attributes() {
    let job = Job::new(PAIRS);
    job.rows();
    for (file, bits) in [("out/scores.parquet", 0o640), ("x.csv", 0o604)] {
        let path = job.path(file);
        write(&job, "x.csv");
        set_mode(&path, bits);
        let attributes = rustix::fs::setxattr(&path, "user.origin", b"nightly", rustix::fs::XattrFlags::empty());
        if is_root() {
            chown(&path, Some(OTHER), Some(OTHER + 1)).unwrap();
        }
        let before = fs::metadata(&path).unwrap();
        job.rows();
        write(&job, "x.csv");
        let after = fs::metadata(&path).unwrap();
        assert_ne!(after.ino(), before.ino());
        assert_eq!((mode(&path), after.uid(), after.gid()), (bits, before.uid(), before.gid()), "{file}");
        if attributes.is_ok() {
            let mut value = [0; 20];
            let length = rustix::fs::getxattr(&path, "user.origin", &mut value).unwrap();
            assert_eq!(&value[..length], b"nightly", "{file}");
        }
    }
}

#[test]
fn a_replaced_model_keeps_the_mode_of_its_folder() {
    let job = Job::new(PAIRS);
    let target = job.path("model");
    for _ in 0..2 {
        let folder = couplet::files::AtomicFolder::create(&target, &couplet::model::MODEL_FOLDER).unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        folder.publish().unwrap();
        if fs::metadata(&target).unwrap().permissions().mode() & 0o777 != 0o750 {
            set_mode(&target, 0o750);
        }
    }
    assert_eq!(mode(&target), 0o750);
}

#[test]
fn a_symlink_stays_and_its_target_is_written() {
    let job = Job::new(PAIRS);
    fs::create_dir_all(job.path("data/old")).unwrap();
    symlink("data/scores.parquet", job.path("direct")).unwrap();
    // A symlink to a symlink, and to a missing file.
    fs::create_dir(job.path("out")).unwrap();
    symlink("../direct", job.path("out/scores.parquet")).unwrap();
    for _ in 0..2 {
        assert_eq!(job.rows().len(), 2);
        assert!(job.path("direct").is_symlink() && job.path("out/scores.parquet").is_symlink());
        assert!(job.path("data/scores.parquet").is_file() && !job.path("data/scores.parquet").is_symlink());
    }
    // Another hard link to the same file keeps the old rows.
    fs::hard_link(job.path("data/scores.parquet"), job.path("kept.parquet")).unwrap();
    let before = fs::read(job.path("kept.parquet")).unwrap();
    fs::write(job.path("pairs.csv"), "id,a,b\n1,x,y\n").unwrap();
    assert_eq!(job.rows().len(), 1);
    assert_eq!(fs::read(job.path("kept.parquet")).unwrap(), before);
    // A symlink to a folder of runs is followed too.
    symlink("data/old", job.path("runs")).unwrap();
    let job = job.change("uri = \"out/scores.parquet\"", "uri = \"runs\"");
    job.report();
    assert!(job.path("runs").is_symlink());
    assert_eq!(fs::read_dir(job.path("data/old")).unwrap().count(), 1);
}

#[test]
fn a_symlink_of_another_user_in_a_shared_folder_is_refused() {
    let name = "a_symlink_of_another_user_in_a_shared_folder_is_refused";
    if !is_root() {
        return skip(name, "only root can make files of other users");
    }
    let job = Job::new(PAIRS).change("out/scores.parquet", "shared/scores.parquet");
    fs::write(job.path("precious"), "of root").unwrap();
    fs::create_dir(job.path("shared")).unwrap();
    set_mode(&job.path("shared"), 0o1777);
    for (file, is_link) in [("scores.parquet", true), ("x.csv", true), ("y.csv", false)] {
        let path = job.path("shared").join(file);
        if is_link {
            symlink(job.path("precious"), &path).unwrap();
        } else {
            fs::write(&path, "").unwrap();
        }
        lchown(&path, Some(OTHER), None).unwrap();
    }
    for command in ["run", "plan"] {
        let message = job.error_of(&mut job.couplet(&[command, "pipeline.toml"]), 2);
        assert!(
            message.contains("is a link of another user (uid 54321), in a folder in which everyone may"),
            "{message}"
        );
    }
    for file in ["x.csv", "y.csv"] {
        let output = write(&job, &format!("shared/{file}"));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && message.contains(" of another user (uid 54321)"), "{message}");
    }
    assert_eq!(fs::read_to_string(job.path("precious")).unwrap(), "of root");
    // Symlinks of other users are accepted in an own folder, and those of the folder's owner in a shared one.
    fs::remove_file(job.path("precious")).unwrap();
    set_mode(&job.path("shared"), 0o755);
    assert!(write(&job, "shared/x.csv").status.success());
    set_mode(&job.path("shared"), 0o1777);
    chown(job.path("shared"), Some(OTHER), None).unwrap();
    assert!(write(&job, "shared/x.csv").status.success());
    assert_eq!(fs::read_to_string(job.path("precious")).unwrap(), "x\n7\n");
}

/// Runs a command of the job while the disk fails to sync a file or folder of it; `None` if that cannot be simulated.
fn without_sync(job: &Job, test: &str, path: &str, arguments: &[&str]) -> Option<Output> {
    let path = job.path(path).canonicalize().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "-P"])
        .arg(path)
        .arg(env!("CARGO_BIN_EXE_couplet"))
        .args(arguments)
        .current_dir(job.path(""))
        .env("NO_COLOR", "1")
        .output()
        .ok();
    let Some(output) = output.filter(|output| !String::from_utf8_lossy(&output.stderr).contains("ptrace")) else {
        skip(test, "strace is not installed, or may not trace");
        return None;
    };
    Some(output)
}

#[test]
fn a_failed_sync_of_a_rename_is_reported() {
    let test = "a_failed_sync_of_a_rename_is_reported";
    let delta = "out\"\nformat = \"delta\"\nmode = \"overwrite";
    for (sink, synced) in [("out/scores.parquet", "out"), ("out", "out"), (delta, "out/_delta_log")] {
        let job = Job::new(PAIRS).change("out/scores.parquet", sink);
        job.report();
        fs::write(job.path("pairs.csv"), "id,a,b\n1,x,y\n").unwrap();
        let Some(output) = without_sync(&job, test, synced, &["run", "pipeline.toml"]) else { return };
        let message = job.without_paths(&String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{sink}: {message}");
        assert!(
            message.contains("the new version is there, but the disk did not confirm that it is durable"),
            "{message}"
        );
        assert!(!message.contains("as it was"), "{message}");
        let sql = "SELECT count(*) AS n FROM predictions";
        let mut query = job.couplet(&["query", "-p", "pipeline.toml", "--format", "csv", sql]);
        assert_eq!(stdout_of(&mut query), "n\n1\n", "{sink}");
    }
}

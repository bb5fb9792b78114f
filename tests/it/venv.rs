//! Programs from PyPI, which the tests install into virtual environments in the target folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program of this name in an environment with the packages, or why there is none.
pub fn program(environment: &str, packages: &[&str], name: &str) -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let venv = target.join(environment);
    let bin = venv.join(if cfg!(windows) { "Scripts" } else { "bin" });
    let python = bin.join("python").with_extension(std::env::consts::EXE_EXTENSION);
    // Another test process may be installing; the lock ends with the file handle.
    let lock = File::create(target.join(format!("{environment}.lock"))).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    // Written last, so that an interrupted installation is repeated.
    let complete = venv.join("complete");
    let packages_text = packages.join(" ");
    if std::fs::read_to_string(&complete).is_ok_and(|installed| installed == packages_text) {
        return Ok(bin.join(name).with_extension(std::env::consts::EXE_EXTENSION));
    }
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"];
    succeed(Command::new(&python).args(pip).args(packages))?;
    std::fs::write(complete, packages_text).map_err(|e| e.to_string())?;
    Ok(bin.join(name).with_extension(std::env::consts::EXE_EXTENSION))
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", stderr.lines().last().unwrap_or("failed")))
    }
}

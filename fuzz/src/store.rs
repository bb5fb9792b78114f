//! What lies in a store or a sink beside the tables: a lock, and the manifest of a run.

use std::time::Duration;

use couplet::lock::{self, Claim, Place};
use couplet::sink::runs;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Takes the lock of a local store that has these bytes in its lock file; how many runs it says were left behind.
pub fn lock(bytes: &[u8]) -> usize {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("lock.json"), bytes).unwrap();
    let claim = Claim { run_id: "1".into(), pipeline: "demo".into(), wait: None, lease: Duration::from_secs(60) };
    block_on(async {
        // Nobody holds the file, so that it is free whatever it says.
        let held = lock::acquire(&Place::Folder(folder.path().to_owned()), &claim).await.unwrap();
        let left_behind = held.left_behind().iter().map(|holder| assert!(!holder.to_string().is_empty())).count();
        held.release().await.unwrap();
        left_behind
    })
}

/// Looks for the newest run in a folder whose only run has these bytes as its manifest; whether there is one.
pub fn manifest(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run=000001-a");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("_SUCCESS"), bytes).unwrap();
    let place = Place::Folder(folder.path().to_owned());
    let found = block_on(runs::latest(&place));
    let Ok(Some(manifest)) = found else { return false };
    let _ = manifest.bytes();
    // A manifest names files of its own folder, and no others.
    for path in manifest.paths(&Default::default()) {
        let parts: Vec<_> = path.parts().map(|part| part.as_ref().to_owned()).collect();
        assert!(parts[0].starts_with("run=") && parts.len() <= 2 && !parts.contains(&"..".to_owned()), "{path}");
    }
    true
}

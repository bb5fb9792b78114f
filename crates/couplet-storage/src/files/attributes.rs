//! Attributes that a new file or folder inherits from the one that it replaces: symbolic links to it, owner, mode,
//! access control list and extended attributes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::folder_of;

/// Maximum length of a chain of symbolic links, as in Linux.
const MAX_LINKS: usize = 40;

/// Follows symbolic links from a path to the file to replace, which need not exist.
///
/// # Errors
/// A symbolic link or file of another user in a folder where everyone may create files, such as `/tmp`: it could lead
/// anywhere, or give that user the output. Linux refuses to open these too (`fs.protected_symlinks`,
/// `fs.protected_regular`), but not to replace them.
pub fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(existing) = path.symlink_metadata() else { return Ok(path) };
        refuse_foreign(&path, &existing)?;
        if !existing.is_symlink() {
            return Ok(path);
        }
        path = folder_of(&path).join(fs::read_link(&path)?);
    }
    Err(io::Error::other(format!("more than {MAX_LINKS} symbolic links in a chain")))
}

#[cfg(unix)]
fn refuse_foreign(path: &Path, existing: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    /// The sticky bit, and write permission for everyone.
    const SHARED: u32 = 0o1002;
    let parent = folder_of(path).metadata()?;
    let is_own = [parent.uid(), rustix::process::geteuid().as_raw()].contains(&existing.uid());
    if is_own || existing.is_dir() || parent.mode() & SHARED != SHARED {
        return Ok(());
    }
    let what = if existing.is_symlink() { "link" } else { "file" };
    let (path, uid) = (path.display(), existing.uid());
    let problem = format!(
        "{path} is a {what} of another user (uid {uid}), in a folder in which everyone may create files; name another \
         place"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

#[cfg(not(unix))]
fn refuse_foreign(_: &Path, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

/// Returns options to create a file that will replace `target`. At no time can more users read the new file than the
/// old one.
pub(super) fn replacement_options(target: &Path) -> fs::OpenOptions {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if let Ok(existing) = target.metadata() {
        use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
        options.mode(existing.mode() & 0o777);
    }
    options
}

/// Creates a folder that will replace `target`, with no more permissions for others.
pub(super) fn create_folder(path: &Path, target: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    if let Ok(existing) = target.metadata() {
        use std::os::unix::fs::{DirBuilderExt, MetadataExt};
        // The owner needs write permission until the folder gets its final mode.
        builder.mode(existing.mode() & 0o777 | 0o700);
    }
    builder.create(path)
}

/// Copies owner, mode, access control list and extended attributes from the target to the file or folder that is about
/// to replace it, as far as this user is permitted to.
///
/// # Errors
/// A mode that cannot be set.
#[cfg(unix)]
pub(super) fn copy_attributes(new: &File, target: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let Ok(existing) = target.metadata() else { return Ok(()) };
    // Only root can change the owner; a member of the group can keep the group.
    let _ =
        fchown(new, Some(existing.uid()), Some(existing.gid())).or_else(|_| fchown(new, None, Some(existing.gid())));
    let is_group_kept = new.metadata()?.gid() == existing.gid();
    let mut mode = existing.mode() & 0o777;
    if is_group_kept {
        copy_extended_attributes(new, target);
    } else {
        // If the group differs, it gets only the permissions of everyone.
        mode = mode & 0o707 | (mode & 0o007) << 3;
    }
    new.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
pub(super) fn copy_attributes(_: &File, _: &Path) -> io::Result<()> {
    Ok(())
}

/// Copies the access control list and user attributes.
#[cfg(target_os = "linux")]
fn copy_extended_attributes(new: &File, target: &Path) {
    use rustix::fs::{XattrFlags, fsetxattr, getxattr, listxattr};
    /// The kernel's limit, for all names together and for each value.
    const MAX_BYTES: usize = 64 << 10;
    let mut names = vec![0_u8; MAX_BYTES];
    let Ok(length) = listxattr(target, &mut names) else { return };
    for name in names[..length].split(|byte| *byte == 0) {
        if name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") {
            let mut value = vec![0_u8; MAX_BYTES];
            let copied = getxattr(target, name, &mut value)
                .and_then(|length| fsetxattr(new, name, &value[..length], XattrFlags::empty()));
            if let Err(error) = copied {
                tracing::debug!("{}: {} is not kept: {error}", target.display(), String::from_utf8_lossy(name));
            }
        }
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn copy_extended_attributes(_: &File, _: &Path) {}

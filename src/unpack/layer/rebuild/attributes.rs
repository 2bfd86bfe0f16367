//! Reads extended attributes and sorts them: those of the layer, those of overlayfs, those of the host.
//!
//! An attribute of overlayfs that is not known here is an error, and the layer is not rebuilt: an incomplete layer
//! is worse than a missing one.

use std::io;
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{lgetxattr, lgetxattr_query, llistxattr, llistxattr_query};

/// An attribute: its name and its value, as the file system has them.
pub(super) type Attribute = (String, Vec<u8>);

/// The prefix of overlayfs' own attributes.
const TRUSTED: &str = "trusted.overlay.";

/// The prefix of overlayfs' own attributes in a mount with `userxattr`. In a mount without this option, attributes
/// with this prefix belong to the image and have no meaning for overlayfs.
const USER: &str = "user.overlay.";

/// The attributes of overlayfs that do not change the content of the layer.
const BOOKKEEPING: [&str; 6] = ["impure", "nlink", "origin", "protattr", "upper", "uuid"];

/// The attributes that the host's security modules set on every file, by its path and not by its content. The
/// target file gets its own; those of another file would be rejected or wrong.
const OF_THE_HOST: [&str; 3] = ["security.SMACK64", "security.evm", "security.selinux"];

/// The attributes of one file, sorted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Attributes {
    /// The attributes that go into the archive.
    pub(super) own: Vec<Attribute>,
    /// Whether the directory hides the same directory of the layers below.
    pub(super) opaque: bool,
}

/// Returns all attributes of a file, without following a link. They are ordered by name, so that the same layer
/// makes the same archive.
pub(super) fn read(path: &Path) -> io::Result<Vec<Attribute>> {
    let mut list = Vec::with_capacity(llistxattr_query(path)?);
    if list.capacity() == 0 {
        return Ok(vec![]);
    }
    llistxattr(path, spare_capacity(&mut list))?;
    let names = list
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    let mut all = names
        .map(|name| {
            let mut value = Vec::with_capacity(lgetxattr_query(path, name)?);
            if value.capacity() > 0 {
                lgetxattr(path, name, spare_capacity(&mut value))?;
            }
            let name = String::from_utf8(name.to_vec()).map_err(io::Error::other)?;
            Ok((name, value))
        })
        .collect::<io::Result<Vec<_>>>()?;
    all.sort_unstable();
    Ok(all)
}

/// Sorts the attributes. The error is the name of an attribute of overlayfs that points to data outside of this
/// directory, or that is not known, or a name that an archive cannot have. `userxattr` says whether overlayfs mounts the directory with that option.
pub(super) fn sort(all: Vec<Attribute>, userxattr: bool) -> Result<Attributes, String> {
    let mut sorted = Attributes::default();
    for (name, value) in all {
        let of_user = name.strip_prefix(USER).filter(|_| userxattr);
        let of_overlayfs = name.strip_prefix(TRUSTED).or(of_user);
        match of_overlayfs {
            Some("opaque") if value == b"y" => sorted.opaque = true,
            Some(suffix) if BOOKKEEPING.contains(&suffix) => {}
            Some(_) => return Err(name),
            None if OF_THE_HOST.iter().any(|host| name.starts_with(host)) => {}
            // A record of the archive ends its name there: it would become another attribute.
            None if name.contains('=') => return Err(name),
            None => sorted.own.push((name, value)),
        }
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: &str, value: &[u8]) -> Attribute {
        (name.to_owned(), value.to_vec())
    }

    #[test]
    fn only_the_layers_own_attributes_are_kept() {
        let own = [
            attribute("security.capability", &[1, 0, 0, 2]),
            attribute("security.ima", b"signature"),
            attribute("user.empty", b""),
            attribute("user.overlay.opaque", b"y"),
            attribute("user.overlay.redirect", b"/elsewhere"),
        ];
        let others = [
            attribute("security.SMACK64EXEC", b"_"),
            attribute("security.evm", b"x"),
            attribute("security.selinux", b"container_ro_file_t"),
            attribute("trusted.overlay.impure", b"y"),
            attribute("trusted.overlay.origin", &[0xfb]),
        ];
        let sorted = sort([&own[..], &others].concat(), false).unwrap();
        assert_eq!(sorted.own, own);
        assert!(!sorted.opaque);
        let opaque = vec![attribute("trusted.overlay.opaque", b"y")];
        assert!(sort(opaque, false).unwrap().opaque);
    }

    #[test]
    fn with_userxattr_attributes_under_user_overlay_are_overlayfs_own() {
        let all = vec![
            attribute("user.note", b"n"),
            attribute("user.overlay.impure", b"y"),
            attribute("user.overlay.opaque", b"y"),
        ];
        let sorted = sort(all, true).unwrap();
        assert_eq!(sorted.own, [attribute("user.note", b"n")]);
        assert!(sorted.opaque);
    }

    #[test]
    fn an_attribute_that_points_elsewhere_or_is_unknown_is_an_error() {
        for (name, value) in [
            ("trusted.overlay.metacopy", &b""[..]),
            ("trusted.overlay.redirect", b"/elsewhere"),
            ("trusted.overlay.opaque", b"x"),
            ("trusted.overlay.whiteout", b"y"),
            ("trusted.overlay.overlay.opaque", b"y"),
            ("user.overlay.metacopy", b""),
            ("user.a=b", b"c"),
        ] {
            let refused = sort(vec![attribute(name, value)], true);
            assert_eq!(refused, Err(name.to_owned()));
        }
    }
}

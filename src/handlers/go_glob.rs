//! Matches file patterns as Go's `filepath.Glob` does, with which containerd finds its imports. `*`, `**` and
//! `?` do not match a `/`, `^` negates a class, and `\` escapes the next character.

use std::fs;
use std::path::{Path, PathBuf};

/// The error for an invalid pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadPattern;

/// Returns the files that match, in order. A directory that cannot be read has none.
pub(super) fn glob(pattern: &str) -> Result<Vec<PathBuf>, BadPattern> {
    matches(pattern, "")?;
    if !has_meta(pattern) {
        let is_there = fs::symlink_metadata(pattern).is_ok();
        return Ok(is_there.then(|| pattern.into()).into_iter().collect());
    }
    let (folder, name) = pattern.rsplit_once('/').ok_or(BadPattern)?;
    let folder = match folder {
        "" => "/",
        folder => folder,
    };
    let folders = match has_meta(folder) {
        true => glob(folder)?,
        false => vec![folder.into()],
    };
    let mut found = Vec::new();
    for folder in folders {
        found.extend(within(&folder, name)?);
    }
    Ok(found)
}

fn within(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, BadPattern> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.collect();
    names.sort();
    let mut found = Vec::new();
    for name in names {
        if matches(pattern, &name)? {
            found.push(folder.join(name));
        }
    }
    Ok(found)
}

/// Whether a path has characters with a meaning in patterns.
pub(super) fn has_meta(path: &str) -> bool {
    path.contains(['*', '?', '[', '\\'])
}

/// Whether the whole name matches.
pub(super) fn matches(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let pattern = parse(pattern)?;
    let name: Vec<_> = name.chars().collect();
    Ok(matched(&pattern, &name))
}

enum GlobToken {
    /// `*`
    Any,
    /// `?`
    One,
    Char(char),
    Class {
        is_negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl GlobToken {
    fn matches(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => c != '/',
            Self::Char(own) => *own == c,
            Self::Class { is_negated, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *is_negated
            }
        }
    }
}

fn matched(pattern: &[GlobToken], name: &[char]) -> bool {
    // Entry `i` is true if the first `i` tokens match the text so far. `*` also matches no character.
    let mut reached = vec![false; pattern.len() + 1];
    reached[0] = true;
    skip_stars(pattern, &mut reached);
    for c in name {
        let mut next = vec![false; pattern.len() + 1];
        for (i, token) in pattern.iter().enumerate().filter(|(i, _)| reached[*i]) {
            if token.matches(*c) {
                next[if matches!(token, GlobToken::Any) {
                    i
                } else {
                    i + 1
                }] = true;
            }
        }
        skip_stars(pattern, &mut next);
        reached = next;
    }
    reached[pattern.len()]
}

fn skip_stars(pattern: &[GlobToken], reached: &mut [bool]) {
    for (i, token) in pattern.iter().enumerate() {
        if reached[i] && matches!(token, GlobToken::Any) {
            reached[i + 1] = true;
        }
    }
}

fn parse(pattern: &str) -> Result<Vec<GlobToken>, BadPattern> {
    let mut tokens = Vec::new();
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        tokens.push(match c {
            '*' => GlobToken::Any,
            '?' => GlobToken::One,
            '\\' => GlobToken::Char(rest.next().ok_or(BadPattern)?),
            '[' => class(&mut rest)?,
            c => GlobToken::Char(c),
        });
    }
    Ok(tokens)
}

fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<GlobToken, BadPattern> {
    let is_negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
        let from = bound(rest)?;
        let to = match rest.next_if_eq(&'-') {
            Some(_) => bound(rest)?,
            None => from,
        };
        ranges.push((from, to));
    }
    Ok(GlobToken::Class { is_negated, ranges })
}

/// Reads one character of a class.
fn bound(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadPattern> {
    match rest.next().ok_or(BadPattern)? {
        '-' | ']' => Err(BadPattern),
        '\\' => rest.next().ok_or(BadPattern),
        c => Ok(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases are from Go's documentation and tests of `filepath.Match`.
    #[test]
    fn a_pattern_matches_as_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", Ok(true)),
            ("*", "abc", Ok(true)),
            ("*c", "abc", Ok(true)),
            ("a*", "ab/c", Ok(false)),
            ("a**/b", "abc/b", Ok(true)),
            ("**/b", "a/c/b", Ok(false)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Ok(true)),
            ("ab[c]", "abc", Ok(true)),
            ("ab[b-d]", "abc", Ok(true)),
            ("ab[^c]", "abc", Ok(false)),
            ("ab[^e-g]", "abc", Ok(true)),
            ("[!x]", "!", Ok(true)),
            ("a\\*b", "a*b", Ok(true)),
            ("to\\p*", "top1", Ok(true)),
            ("a?b", "a☺b", Ok(true)),
            ("a?b", "a/b", Ok(false)),
            ("[^a]", "/", Ok(true)),
            ("[\\]a]", "]", Ok(true)),
            ("[x\\-]", "-", Ok(true)),
            ("*x", "xxx", Ok(true)),
            ("[]a]", "]", Err(BadPattern)),
            ("[-]", "-", Err(BadPattern)),
            ("[x-]", "x", Err(BadPattern)),
            ("[a-b-c]", "a", Err(BadPattern)),
            ("[", "a", Err(BadPattern)),
            ("[^bc", "a", Err(BadPattern)),
            ("a[", "a", Err(BadPattern)),
            ("\\", "a", Err(BadPattern)),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn files_are_found_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in [
            "d/2.toml",
            "d/1.toml",
            "d/e/3.toml",
            "d/.4.toml",
            "x/5.toml",
        ] {
            fs::create_dir_all(at(name).parent().expect("a parent")).expect("created");
            fs::write(at(name), "").expect("written");
        }
        let found = |pattern: &str| {
            let found = glob(&format!("{}/{pattern}", folder.path().display()));
            found.map(|found| {
                let names = found.iter().map(|path| path.strip_prefix(folder.path()));
                let names = names.map(|name| name.expect("below").display().to_string());
                names.collect::<Vec<_>>()
            })
        };
        let names = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(
            found("d/*.toml"),
            names(&["d/.4.toml", "d/1.toml", "d/2.toml"])
        );
        assert_eq!(found("d/**/*.toml"), names(&["d/e/3.toml"]));
        assert_eq!(found("*/[^1.]*.toml"), names(&["d/2.toml", "x/5.toml"]));
        assert_eq!(found("none/*"), names(&[]));
        assert_eq!(found("d/1.toml"), names(&["d/1.toml"]));
        assert_eq!(found("d/[*"), Err(BadPattern));
    }
}

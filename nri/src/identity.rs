//! A plugin's identity: its name and its index among the runtime's plugins.
//!
//! The rules are NRI's. They are checked before the registration, because a runtime closes the connection
//! of a plugin that breaks them without an error.

use std::fmt;
use std::str::FromStr;

/// A plugin's name: one or more ASCII letters, digits and `_`, `.`, `+`, `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PluginName(String);

/// A plugin's index, two digits. The runtime calls its plugins in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginIndex(u8);

/// A plugin's name and index. Its text is the name of the plugin's executable: `10-name`.
///
/// ```
/// let identity: nri::Identity = "10-event-log".parse()?;
/// assert_eq!(identity.name.as_str(), "event-log");
/// assert_eq!(identity.to_string(), "10-event-log");
/// # Ok::<(), nri::IdentityError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The plugin's name.
    pub name: PluginName,
    /// The plugin's index.
    pub index: PluginIndex,
}

/// An error for a name or an index that no runtime accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The name is empty.
    #[error("a plugin name must not be empty")]
    EmptyName,
    /// The name has a character that NRI does not allow.
    #[error(
        "plugin name {name:?} contains {character:?}: only letters, digits, '_', '.', '+' and '-' \
         are allowed"
    )]
    NameCharacter {
        /// The name.
        name: String,
        /// The first such character.
        character: char,
    },
    /// The index is not two digits.
    #[error("plugin index {0:?} must be two digits, 00 to 99")]
    Index(String),
    /// There is no dash between index and name.
    #[error("plugin {0:?} must be an index, a dash and a name, as in 10-example")]
    Form(String),
}

impl PluginName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PluginName {
    type Error = IdentityError;

    fn try_from(name: String) -> Result<Self, IdentityError> {
        if name.is_empty() {
            return Err(IdentityError::EmptyName);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        match name.chars().find(|&c| !allowed(c)) {
            None => Ok(Self(name)),
            Some(character) => Err(IdentityError::NameCharacter { name, character }),
        }
    }
}

impl FromStr for PluginName {
    type Err = IdentityError;

    fn from_str(name: &str) -> Result<Self, IdentityError> {
        name.to_owned().try_into()
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PluginIndex {
    type Err = IdentityError;

    fn from_str(index: &str) -> Result<Self, IdentityError> {
        match index.as_bytes() {
            [tens @ b'0'..=b'9', units @ b'0'..=b'9'] => {
                Ok(Self((tens - b'0') * 10 + (units - b'0')))
            }
            _ => Err(IdentityError::Index(index.to_owned())),
        }
    }
}

impl TryFrom<String> for PluginIndex {
    type Error = IdentityError;

    fn try_from(index: String) -> Result<Self, IdentityError> {
        index.parse()
    }
}

impl fmt::Display for PluginIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let Some((index, name)) = text.split_once('-') else {
            return Err(IdentityError::Form(text.to_owned()));
        };
        let (name, index) = (name.parse()?, index.parse()?);
        Ok(Self { name, index })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_by_nris_rules() {
        for name in ["a", "nri-unpack", "A_b.c+d-9", "-", ".."] {
            assert_eq!(name.parse::<PluginName>().unwrap().to_string(), name);
        }
        assert_eq!("".parse::<PluginName>(), Err(IdentityError::EmptyName));
        for (name, character) in [
            ("a b", ' '),
            ("a/b", '/'),
            ("naïve", 'ï'),
            ("a\n", '\n'),
            ("a\0", '\0'),
        ] {
            let name = name.to_owned();
            assert_eq!(
                PluginName::try_from(name.clone()),
                Err(IdentityError::NameCharacter { name, character })
            );
        }
    }

    #[test]
    fn indices_are_two_digits() {
        for index in ["00", "07", "10", "99"] {
            assert_eq!(index.parse::<PluginIndex>().unwrap().to_string(), index);
        }
        for index in ["", "1", "100", "1a", "-1", "+1", " 1", "1 ", "٣", "０１"] {
            assert_eq!(
                index.parse::<PluginIndex>(),
                Err(IdentityError::Index(index.to_owned()))
            );
        }
    }

    #[test]
    fn an_identity_is_written_like_an_executables_name() {
        let identity: Identity = "05-a-b".parse().unwrap();
        assert_eq!(identity.index, "05".parse().unwrap());
        assert_eq!(identity.name, "a-b".parse().unwrap());
        for (text, error) in [
            ("05", IdentityError::Form("05".into())),
            ("05-", IdentityError::EmptyName),
            ("5-a", IdentityError::Index("5".into())),
        ] {
            assert_eq!(text.parse::<Identity>(), Err(error));
        }
    }
}

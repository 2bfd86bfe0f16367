//! Flags in the syntax of Go's `flag` package: one dash or two, `--name value` or `--name=value`, and only
//! before the first argument.

use std::collections::HashMap;

use anyhow::{Result, bail};

/// A flag of a command.
pub(crate) struct Flag {
    /// The names; [`Flags`] uses the first one.
    names: &'static [&'static str],
    takes_value: bool,
}

impl Flag {
    /// Returns a flag with a value.
    pub(crate) const fn value(names: &'static [&'static str]) -> Self {
        Self {
            names,
            takes_value: true,
        }
    }

    /// Returns a flag without a value.
    pub(crate) const fn switch(names: &'static [&'static str]) -> Self {
        Self {
            names,
            takes_value: false,
        }
    }
}

/// The flags that were given.
#[derive(Debug, Default)]
pub(crate) struct Flags(HashMap<&'static str, String>);

impl Flags {
    /// Parses the flags at the front; also returns the remaining arguments.
    pub(crate) fn parse(
        known: &[Flag],
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<(Self, Vec<String>)> {
        let mut given = Self::default();
        let mut arguments = arguments.into_iter().peekable();
        while let Some(argument) = arguments.next_if(|a| a.starts_with('-') && a != "-") {
            if argument == "--" {
                break;
            }
            let name = argument.trim_start_matches('-');
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let Some(flag) = known.iter().find(|flag| flag.names.contains(&name)) else {
                bail!("flag provided but not defined: -{name}");
            };
            let value = match (flag.takes_value, inline) {
                (_, Some(value)) => value,
                (false, None) => String::new(),
                (true, None) => match arguments.next() {
                    Some(value) => value,
                    None => bail!("flag needs an argument: -{name}"),
                },
            };
            given.0.insert(flag.names[0], value);
        }
        Ok((given, arguments.collect()))
    }

    /// Returns a flag's value.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether the flag was given.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_at_the_first_argument() {
        let known = [
            Flag::value(&["runtime", "r"]),
            Flag::switch(&["quiet", "q"]),
        ];
        let parse = |line: &str| Flags::parse(&known, line.split(' ').map(str::to_owned));
        let (flags, rest) = parse("-r a --quiet pod.json -r b").unwrap();
        assert_eq!(flags.value("runtime"), Some("a"));
        assert!(flags.is_set("quiet"));
        assert_eq!(rest, ["pod.json", "-r", "b"]);
        assert_eq!(parse("--runtime=c").unwrap().0.value("runtime"), Some("c"));
        for (line, error) in [
            ("--nope", "flag provided but not defined: -nope"),
            ("-r", "flag needs an argument: -r"),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), error);
        }
    }
}

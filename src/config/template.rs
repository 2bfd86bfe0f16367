//! The value of an extra label: text with variables. The names of the variables are checked when it is parsed.

use serde::Deserialize;

use super::InvalidValue;

/// A variable in the value of an extra label. Each layer has its own value for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Variable {
    /// `{image-ref}`: the name that the image is pulled under.
    ImageRef,
    /// `{manifest-digest}`: the digest of this platform's manifest.
    ManifestDigest,
    /// `{layer-digest}`: the digest of the layer's blob.
    LayerDigest,
    /// `{diff-id}`: the digest of the uncompressed layer.
    DiffId,
    /// `{chain-id}`: the digest over the layer and all layers below it.
    ChainId,
}

impl Variable {
    const NAMES: [(&str, Self); 5] = [
        ("image-ref", Self::ImageRef),
        ("manifest-digest", Self::ManifestDigest),
        ("layer-digest", Self::LayerDigest),
        ("diff-id", Self::DiffId),
        ("chain-id", Self::ChainId),
    ];

    fn named(name: &str) -> Result<Self, InvalidValue> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, variable)| *variable).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| format!("{{{name}}}"));
            InvalidValue::new(format!(
                "{{{name}}} is not a variable: use one of {}, and write {{{{ for a brace",
                names.join(", ")
            ))
        })
    }
}

/// The value of an extra label, such as `team {image-ref}`. A literal brace is written twice.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Text(String),
    Variable(Variable),
}

impl Template {
    /// Returns the text with its variables filled in; `None` where one of them has no value.
    pub fn fill<'a>(&self, value: impl Fn(Variable) -> Option<&'a str>) -> Option<String> {
        let mut filled = String::new();
        for part in &self.0 {
            filled.push_str(match part {
                Part::Text(text) => text,
                Part::Variable(variable) => value(*variable)?,
            });
        }
        Some(filled)
    }

    /// Whether the text is empty for all values of variables.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of bytes of the text without its variables.
    pub(super) fn least_len(&self) -> usize {
        let text = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::Variable(_) => 0,
        };
        self.0.iter().map(text).sum()
    }
}

impl TryFrom<String> for Template {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut unparsed = text.as_str();
        while let Some(at) = unparsed.find(['{', '}']) {
            let (before, from_brace) = unparsed.split_at(at);
            plain.push_str(before);
            if let Some(after) = from_brace.strip_prefix("{{") {
                plain.push('{');
                unparsed = after;
            } else if let Some(after) = from_brace.strip_prefix("}}") {
                plain.push('}');
                unparsed = after;
            } else if let Some((name, after)) = from_brace[1..].split_once('}')
                && from_brace.starts_with('{')
            {
                parts.push(Part::Text(std::mem::take(&mut plain)));
                parts.push(Part::Variable(Variable::named(name)?));
                unparsed = after;
            } else {
                return Err(InvalidValue::new(format!(
                    "{text:?} has an unmatched brace: write a literal brace twice"
                )));
            }
        }
        plain.push_str(unparsed);
        parts.push(Part::Text(plain));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let template = Template::try_from(text.to_owned()).map_err(|e| e.to_string())?;
        let value = |variable| match variable {
            Variable::ImageRef => Some("r.example/a:1"),
            Variable::ManifestDigest => Some("sha256:m"),
            Variable::LayerDigest => Some("sha256:l"),
            Variable::DiffId => Some("{diff-id}"),
            Variable::ChainId => None,
        };
        template
            .fill(value)
            .ok_or_else(|| "without a value".to_owned())
    }

    #[test]
    fn variables_are_filled_in_once() {
        for (text, expected) in [
            ("", Ok("")),
            ("plain", Ok("plain")),
            (
                "{image-ref} of {manifest-digest}",
                Ok("r.example/a:1 of sha256:m"),
            ),
            ("{layer-digest}{layer-digest}", Ok("sha256:lsha256:l")),
            // A value is not parsed for variables.
            ("{diff-id}", Ok("{diff-id}")),
            ("{chain-id}", Err("without a value")),
            ("{{image-ref}}", Ok("{image-ref}")),
            ("{{{image-ref}}}", Ok("{r.example/a:1}")),
            (r#"{{"a":1}}"#, Ok(r#"{"a":1}"#)),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(filled(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_variables_and_unmatched_braces_are_errors() {
        for (text, words) in [
            (
                "{image}",
                "{image} is not a variable: use one of {image-ref}, ",
            ),
            ("{}", "{} is not a variable"),
            ("a {image-ref", "has an unmatched brace"),
            ("a } b", "has an unmatched brace"),
        ] {
            let error = filled(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn doubled_braces_express_any_text(text in ".*") {
            let written = text.replace('{', "{{").replace('}', "}}");
            let template = Template::try_from(written).unwrap();
            prop_assert_eq!(template.least_len(), text.len());
            prop_assert_eq!(template.fill(|_| None), Some(text));
        }
    }
}

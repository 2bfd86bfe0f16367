//! Errors of parsers without the values that they quote: a document that is read may have a secret where something else is
//! expected.

/// What begins and what ends a value in a message of serde.
const QUOTES: [(&str, &str); 3] = [("string \"", "\""), ("variant `", "`"), ("field `", "`")];

/// Returns the first line of a parser's message without quoted values. The lines after it are those of the document.
pub(crate) fn without_values(error: &impl ToString) -> String {
    let message = error.to_string();
    let mut message = message.lines().next().unwrap_or_default().to_owned();
    for (begin, end) in QUOTES {
        let Some(start) = message.find(begin).map(|at| at + begin.len()) else {
            continue;
        };
        // The message goes on with what is expected, which may be quoted as well.
        let until = message.rfind(", expected").filter(|at| *at >= start);
        let rest = &message[start..until.unwrap_or(message.len())];
        // A value with a line break ends in another line.
        let length = rest.rfind(end).unwrap_or(rest.len());
        message.replace_range(start..start + length, "…");
    }
    message
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Document {
        #[serde(rename = "number")]
        _number: Option<u8>,
        #[serde(rename = "kind")]
        _kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize)]
    enum Kind {
        A,
        B,
    }

    #[test]
    fn a_value_is_not_in_the_message() {
        let _ = [Kind::A, Kind::B];
        for (text, expected) in [
            (
                r#"{"number": "a \"se`cret\", expected"}"#,
                "invalid type: string \"…\", expected u8 at line 1 column 36",
            ),
            (
                r#"{"kind": "se`cret"}"#,
                "unknown variant `…`, expected `A` or `B` at line 1 column 18",
            ),
            (r#"{"kind": "secret\n"}"#, "unknown variant `…"),
            (
                r#"{"number": 300}"#,
                "invalid value: integer `300`, expected u8 at line 1 column 14",
            ),
            ("{", "EOF while parsing an object at line 1 column 1"),
        ] {
            let error = serde_json::from_str::<Document>(text).unwrap_err();
            assert_eq!(without_values(&error), expected);
        }
        assert_eq!(without_values(&"wrong\n1 | secret"), "wrong");
    }
}

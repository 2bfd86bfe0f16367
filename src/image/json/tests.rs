use super::*;

#[derive(Debug, Default, PartialEq)]
struct Sample {
    text: String,
    number: i64,
    filled: bool,
    inner: Option<Inner>,
}

#[derive(Debug, Default, PartialEq)]
struct Inner {
    skip: String,
}

impl Object for Sample {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "text" => map.next_value_seed(Text(&mut self.text)),
            "number" => map.next_value_seed(Number(&mut self.number)),
            "filled" => map.next_value_seed(IsFilled(&mut self.filled)),
            "inner" => map.next_value_seed(Maybe(&mut self.inner)),
            _ => skip(map),
        }
    }
}

impl Object for Inner {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "skip" => map.next_value_seed(Text(&mut self.skip)),
            _ => skip(map),
        }
    }
}

fn read_text(document: &[u8]) -> Option<String> {
    read::<Sample>(document).ok().map(|sample| sample.text)
}

#[test]
fn invalid_unicode_in_strings_is_replaced() {
    for (document, expected) in [
        (&br#"{"text": "a"}"#[..], "a"),
        (br#"{"text": "\u00e9\ud83d\ude00"}"#, "\u{e9}\u{1f600}"),
        (b"{\"text\": \"caf\xe9!\"}", "caf\u{fffd}!"),
        (b"{\"caf\xe9\": 1, \"text\": \"a\"}", "a"),
        (br#"{"\ud83d": 1, "text": "a"}"#, "a"),
        (br#"{"author": "\ud83d", "text": "a"}"#, "a"),
        (b"{\"author\": \"caf\xe9\", \"text\": \"a\"}", "a"),
    ] {
        assert_eq!(read_text(document).as_deref(), Some(expected));
    }
    let half = read_text(br#"{"text": "\ud83d"}"#).unwrap();
    assert!(half.contains(char::REPLACEMENT_CHARACTER), "{half:?}");
}

#[test]
fn names_match_in_any_case_and_the_last_duplicate_counts() {
    for (document, text, skip) in [
        (r#"{"TEXT": "a"}"#, "a", None),
        (r#"{"teXt": "a", "text": "b"}"#, "b", None),
        (r#"{"text": "b", "Text": null}"#, "b", None),
        (r#"{"text": null}"#, "", None),
        ("{\"inner\": {\"\u{17f}\u{212a}ip\": \"c\"}}", "", Some("c")),
        (r#"{"inner": {"skip": "c"}, "Inner": {}}"#, "", Some("c")),
        (r#"{"inner": {"skip": "c"}, "Inner": null}"#, "", None),
        ("null", "", None),
    ] {
        let sample: Sample = read(document.as_bytes()).unwrap();
        assert_eq!(sample.text, text, "{document}");
        let inner = sample.inner.map(|inner| inner.skip);
        assert_eq!(inner.as_deref(), skip, "{document}");
    }
}

#[test]
fn fields_that_are_not_read_may_have_any_value() {
    let nested = |depth| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"author": {open}{close}, "text": "a"}}"#)
    };
    for depth in [0, 1, 200, 10_000] {
        let document = nested(depth).replace(": ,", ": 1e999,");
        assert_eq!(read_text(document.as_bytes()).as_deref(), Some("a"));
    }
    for document in [
        "[]",
        "1",
        "{",
        r#"{"text": 1}"#,
        r#"{"number": "1"}"#,
        "{} {}",
    ] {
        assert_eq!(read_text(document.as_bytes()), None, "{document}");
    }
    let sample: Sample = read(br#"{"filled": [null, 1, {}], "number": -3}"#).unwrap();
    assert!(sample.filled && sample.number == -3);
}

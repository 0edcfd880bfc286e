//! Results as CSV (RFC 4180, but with plain line feeds) on standard output.

/// A line of the given fields.
pub fn line<'a>(fields: impl IntoIterator<Item = &'a str>) -> String {
    let fields: Vec<String> = fields.into_iter().map(quoted).collect();
    fields.join(",") + "\n"
}

/// The field, in quotes if it has a character that would end it. Control characters are escaped as in all output.
fn quoted(field: &str) -> String {
    let field = uc_input::printable(field);
    match field.contains(['"', ',']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_commas_and_quotes_are_quoted_and_control_characters_escaped() {
        let fields = ["plain", "a,b", "say \"x\"", "", "two\nlines"];
        assert_eq!(
            line(fields),
            "plain,\"a,b\",\"say \"\"x\"\"\",,two\\nlines\n"
        );
    }
}

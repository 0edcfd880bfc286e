//! Joins the model card with a README.md that a repository already has.
//!
//! Owns the rule: their text stays as it is, keys of the front matter that they lack are added, and the card's own text stands
//! between two markers, so that a later upload replaces it and nothing else. It works on texts and knows no repository.

use std::fmt::Write;

/// The line before the card's text.
pub const BEGIN: &str =
    "<!-- ultracompress: begin; a later upload replaces the text between these markers -->";
/// The line after the card's text.
pub const END: &str = "<!-- ultracompress: end -->";
/// The start of every marker, by which an earlier text is found.
const BEGIN_MARK: &str = "<!-- ultracompress: begin";
/// How a card began before it had markers.
const UNMARKED_CARD: &str = "---\nlibrary_name: ultracompress\n";
/// The line around the front matter.
const FENCE: &str = "---";
/// The only key whose values are joined.
const TAGS: &str = "tags";

/// A card in Markdown: front matter and text between markers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Keys of the front matter in order, each with its values: several make a list.
    pub keys: Vec<(&'static str, Vec<String>)>,
    /// The text in Markdown, with a final newline.
    pub text: String,
}

impl Card {
    /// The whole file, for a repository without a README.md.
    pub fn file(&self) -> String {
        let mut file = format!("{FENCE}\n");
        for (key, values) in &self.keys {
            file += &entry(key, values);
        }
        file += &format!("{FENCE}\n\n");
        file + &self.section()
    }

    /// The text between its markers.
    fn section(&self) -> String {
        format!("{BEGIN}\n{}{END}\n", self.text)
    }

    /// Reads a card back from its file.
    pub fn parse(file: &str) -> Option<Self> {
        let (front, body) = split_front_matter(file)?;
        let mut keys: Vec<(&'static str, Vec<String>)> = Vec::new();
        for line in front.lines() {
            match line.strip_prefix("- ") {
                Some(value) => keys.last_mut()?.1.push(value.to_owned()),
                None => {
                    let (name, value) = line.split_once(':')?;
                    let key = KEYS.into_iter().find(|key| *key == name)?;
                    let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
                    keys.push((key, value.into_iter().collect()));
                }
            }
        }
        let text = body.strip_prefix('\n')?.strip_prefix(BEGIN)?;
        let text = text
            .strip_prefix('\n')?
            .strip_suffix('\n')?
            .strip_suffix(END)?;
        Some(Self {
            keys,
            text: text.to_owned(),
        })
    }

    /// Their README.md with this card joined to it.
    ///
    /// # Errors
    /// Why the two cannot be joined.
    pub fn join(&self, theirs: &str) -> Result<String, &'static str> {
        if theirs.starts_with(UNMARKED_CARD) && !theirs.contains(BEGIN_MARK) {
            return Ok(self.file());
        }
        let (front, body) = match split_front_matter(theirs) {
            Some((front, body)) => (front.to_owned(), body),
            None if theirs.lines().next().is_some_and(is_fence) => {
                return Err("its front matter has no end");
            }
            None => (String::new(), theirs),
        };
        let mut joined = front;
        for (key, values) in &self.keys {
            match (find_key(&joined, key), *key) {
                (Some(at), TAGS) => joined = add_tags(&joined, at, values)?,
                (Some(_), _) => {}
                (None, _) => joined += &entry(key, values),
            }
        }
        let body = self.place_section(body)?;
        let gap = if body.starts_with(['\n', '\r']) {
            ""
        } else {
            "\n"
        };
        Ok(format!("{FENCE}\n{joined}{FENCE}\n{gap}{body}"))
    }

    /// Their text with the section replaced, or appended if there is none.
    fn place_section(&self, body: &str) -> Result<String, &'static str> {
        let Some(begin) = body.find(BEGIN_MARK) else {
            let gap = match body {
                "" => "",
                body if body.ends_with("\n\n") => "",
                body if body.ends_with('\n') => "\n",
                _ => "\n\n",
            };
            return Ok(format!("{body}{gap}{}", self.section()));
        };
        let end = body[begin..].find(END).map(|end| begin + end + END.len());
        let end = end.ok_or("it has the first marker of a card, but not the second")?;
        let rest = body[end..].strip_prefix('\n').unwrap_or(&body[end..]);
        Ok(format!("{}{}{rest}", &body[..begin], self.section()))
    }
}

/// The keys that a card may have.
const KEYS: [&str; 7] = [
    "library_name",
    "license",
    "license_name",
    "license_link",
    "base_model",
    "base_model_relation",
    TAGS,
];

/// A key of the front matter with its values.
fn entry(key: &str, values: &[String]) -> String {
    let mut text = String::new();
    match values {
        [value] if key != TAGS => writeln!(text, "{key}: {value}"),
        values => writeln!(text, "{key}:").and_then(|()| {
            values
                .iter()
                .try_for_each(|value| writeln!(text, "- {value}"))
        }),
    }
    .expect("writing to a string succeeds");
    text
}

fn is_fence(line: &str) -> bool {
    line.trim_end() == FENCE
}

/// The lines of the front matter, and what follows it.
fn split_front_matter(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.split_inclusive('\n');
    let first = lines.next().filter(|line| is_fence(line))?;
    let start = first.len();
    let mut end = start;
    for line in lines {
        if is_fence(line) {
            return Some((&text[start..end], &text[end + line.len()..]));
        }
        end += line.len();
    }
    None
}

/// The offset of the line of a top-level key.
fn find_key(front: &str, key: &str) -> Option<usize> {
    let mut at = 0;
    for line in front.split_inclusive('\n') {
        let rest = line.strip_prefix(key).map(str::trim_start);
        if rest.is_some_and(|rest| rest.starts_with(':')) {
            return Some(at);
        }
        at += line.len();
    }
    None
}

/// Adds the tags that a list lacks; `at` is the offset of its key.
fn add_tags(front: &str, at: usize, tags: &[String]) -> Result<String, &'static str> {
    let (before, rest) = front.split_at(at);
    let line = rest.split_inclusive('\n').next().unwrap_or_default();
    let after = &rest[line.len()..];
    let value = line.split_once(':').map_or("", |(_, value)| value.trim());
    let plain = |item: &str| item.trim().trim_matches(['"', '\'']).to_owned();
    if let Some(items) = value.strip_prefix('[') {
        let items = items
            .strip_suffix(']')
            .ok_or("its list of tags has a form that is not understood")?;
        let mut items: Vec<String> = items
            .split(',')
            .map(|item| item.trim().to_owned())
            .collect();
        items.retain(|item| !item.is_empty());
        for tag in tags {
            if !items.iter().any(|item| plain(item) == *tag) {
                items.push(tag.clone());
            }
        }
        return Ok(format!("{before}{TAGS}: [{}]\n{after}", items.join(", ")));
    }
    if !value.is_empty() {
        return Err("its tags have a form that is not understood");
    }
    let mut list = String::new();
    let (mut indent, mut present) = ("", Vec::new());
    for item in after.split_inclusive('\n') {
        let trimmed = item.trim_start();
        let Some(tag) = trimmed.strip_prefix("- ") else {
            break;
        };
        indent = &item[..item.len() - trimmed.len()];
        present.push(plain(tag));
        list += item;
    }
    let tail = &after[list.len()..];
    if !list.is_empty() && !list.ends_with('\n') {
        list.push('\n');
    }
    for tag in tags.iter().filter(|tag| !present.contains(tag)) {
        list += &format!("{indent}- {tag}\n");
    }
    Ok(format!("{before}{line}{list}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(text: &str) -> Card {
        let key = |name, value: &str| (name, vec![value.to_owned()]);
        Card {
            keys: vec![
                key("library_name", "ultracompress"),
                key("license", "apache-2.0"),
                key("base_model", "org/model"),
                (TAGS, vec!["ultracompress".into(), "5-bit".into()]),
            ],
            text: text.into(),
        }
    }

    #[test]
    fn a_card_is_read_back_from_its_file() {
        let card = card("# title\n\ntext\n");
        assert_eq!(Card::parse(&card.file()), Some(card));
        assert_eq!(Card::parse("# anything\n"), None);
    }

    #[test]
    fn their_text_and_keys_stay_and_ours_are_added() {
        let theirs = "---\nlicense: mit\ntags:\n  - \"chat\"\n  - 5-bit\nlanguage: en\n---\n\n# Theirs\n\nTheir text.\n";
        let joined = card("ours\n").join(theirs).expect("joined");
        let expected = format!(
            "---\nlicense: mit\ntags:\n  - \"chat\"\n  - 5-bit\n  - ultracompress\nlanguage: en\nlibrary_name: ultracompress\n\
             base_model: org/model\n---\n\n# Theirs\n\nTheir text.\n\n{BEGIN}\nours\n{END}\n"
        );
        assert_eq!(joined, expected);
        // A later upload replaces the section and nothing else.
        assert_eq!(card("ours\n").join(&joined).expect("again"), joined);
        let edited = joined.replace("Their text.", "New text.") + "After.\n";
        let newer = card("newer\n").join(&edited).expect("joined");
        assert!(newer.contains("New text.") && newer.ends_with(&format!("newer\n{END}\nAfter.\n")));
        assert!(!newer.contains("\nours\n"), "{newer}");
    }

    #[test]
    fn every_form_of_a_readme_keeps_its_text() {
        for (theirs, kept) in [
            ("", ""),
            ("# only text", "# only text\n\n<!--"),
            (
                "---\ntags: [a, \"b\"]\n---\ntext\n",
                "tags: [a, \"b\", ultracompress, 5-bit]\n",
            ),
            (
                "---\ntags:\nx: y\n---\n",
                "tags:\n- ultracompress\n- 5-bit\nx: y\n",
            ),
            ("---\ntags:\n- a", ""),
            (
                "\u{feff}---\r\nlicense: mit\r\n---\r\n# text\r\n",
                "license: mit\r\n",
            ),
            (
                "---\nbase_model: other/model\n---\n",
                "base_model: other/model\n",
            ),
        ] {
            match card("ours\n").join(theirs) {
                Ok(joined) => {
                    assert!(joined.contains(kept), "{theirs:?}: {joined}");
                    assert!(joined.contains("\nours\n"), "{joined}");
                    assert_eq!(joined.matches("base_model:").count(), 1);
                    assert_eq!(card("ours\n").join(&joined).as_deref(), Ok(&*joined));
                }
                Err(reason) => assert_eq!(reason, "its front matter has no end", "{theirs:?}"),
            }
        }
        let half = format!("text\n{BEGIN}\nours\n");
        card("ours\n").join(&half).expect_err("no second marker");
        let multi_line = "---\ntags: [a,\n  b]\n---\n";
        card("ours\n").join(multi_line).expect_err("not understood");
    }

    #[test]
    fn a_card_of_an_earlier_version_is_replaced() {
        let earlier = "---\nlibrary_name: ultracompress\ntags:\n- quantized\n---\n\n# old\n";
        let card = card("new\n");
        assert_eq!(card.join(earlier).as_deref(), Ok(&*card.file()));
    }
}

//! "Did you mean …?": the most similar of the known names.

/// Least similarity (Jaro-Winkler, 0 to 1) of a suggestion; fewer letters in common are no typing error.
const MIN_SIMILARITY: f64 = 0.85;

/// The known name that is most similar to a word, if one is similar enough.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(word, name), name));
    scored
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// The setting that a wrong key stands for: one with that name in another section, or a similar one.
pub fn closest_setting<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let name = |key: &'a str| key.rsplit('.').next().unwrap_or(key);
    let wanted = key.rsplit('.').next().unwrap_or(key);
    let mut same_name = known.iter().filter(|known| name(known) == wanted);
    match (same_name.next(), same_name.next()) {
        (Some(only), None) => Some(only),
        _ => closest(key, known.iter().map(String::as_str)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_recognized_and_another_word_is_not() {
        let stages = ["quantize", "overlay-fit", "teacher-cache"];
        assert_eq!(closest("quantise", stages), Some("quantize"));
        assert_eq!(closest("teacher_cache", stages), Some("teacher-cache"));
        assert_eq!(closest("upload", stages), None);
    }

    #[test]
    fn a_setting_is_found_by_its_name_alone_and_with_a_typing_error() {
        let known = uc_settings::Settings::keys();
        for (key, expected) in [
            ("bpw", Some("quantize.bpw")),
            ("quantise.bpw", Some("quantize.bpw")),
            ("quantize.bwp", Some("quantize.bpw")),
            ("evaluation.window", Some("evaluation.windows")),
            ("allocation.bpw", Some("quantize.bpw")),
            ("colour", None),
        ] {
            assert_eq!(closest_setting(key, &known), expected, "{key}");
        }
    }
}

use super::*;
use crate::{Device, Rank, Size};

#[test]
fn defaults_are_valid_and_every_section_has_fields() {
    let settings = Settings::default();
    settings.validate().expect("valid");
    for section in Settings::SECTIONS {
        assert!(!settings.fields(section).is_empty(), "{section}");
    }
    assert!(settings.fields("other").is_empty());
}

#[test]
fn every_field_is_described_and_its_example_is_allowed_and_not_the_default() {
    let mut described = Vec::new();
    for section in Settings::DESCRIPTION {
        for field in section.fields {
            let key = format!("{}.{}", section.name, field.name);
            assert!(field.doc.trim().ends_with('.'), "{key}");
            let mut settings = Settings::default();
            settings.set(&key, field.example).expect("an example");
            assert_ne!(settings, Settings::default(), "{key}");
            described.push(key);
        }
    }
    described.sort();
    let mut keys = Settings::keys();
    keys.sort();
    assert_eq!(described, keys);
}

#[test]
fn settings_that_determine_no_pack_are_reset() {
    let mut settings = Settings::default();
    for (key, value) in [
        ("quantize.bpw", "4.5"),
        ("upload.private", "true"),
        ("retention.budget", "1 GiB"),
    ] {
        settings.set(key, value).expect("set");
    }
    let determining = settings.determining();
    assert_eq!(determining.quantize.bpw, 4.5);
    assert!(!determining.upload.private);
    assert_eq!(determining.retention.budget, Size(64 << 30));
}

#[test]
fn values_are_set_from_text() {
    let mut settings = Settings::default();
    settings.set("quantize.bpw", "4.5").expect("set");
    settings
        .set("quantize.bpw", "4")
        .expect("a whole number is a number");
    settings.set("overlay.rank", "8").expect("set");
    settings.set("model.device", "cuda").expect("set");
    assert_eq!(settings.quantize.bpw, 4.0);
    assert_eq!(settings.overlay.rank, Rank::Fixed(8));
    assert_eq!(settings.model.device, Device::Cuda);
    settings.set("overlay.rank", "auto").expect("set");
    assert_eq!(settings.overlay.rank, Rank::Auto);
}

#[test]
fn fields_have_the_text_that_receipts_and_manifests_hold() {
    let quantize = Settings::default().fields("quantize");
    let text: Vec<_> = quantize.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        text.join(" "),
        "bpw=5.0 damping=0.0001 output_damping=0.005 output_shrinkage=0.1 probe_rows=256 shrinkage=0.01"
    );
    assert_eq!(Settings::default().fields("overlay")["rank"], "auto");
    assert_eq!(Settings::default().fields("retention")["budget"], "64 GiB");
}

#[test]
fn bad_keys_types_and_ranges_are_refused_with_the_key() {
    for (key, value, word) in [
        ("quantize.bwp", "5", "quantize.bpw"),
        ("bpw", "5", "one of the settings"),
        ("quantize.bpw", "nine", "invalid type"),
        ("quantize.bpw", "9", "found 9, expected a value from 2 to 8"),
        ("quantize.bpw", "NaN", "invalid type"),
        ("quantize.damping", "0", "from 0.000001"),
        ("overlay.rank", "-1", "invalid"),
        ("overlay.rank", "2000", "1024"),
        ("calibration.length", "1", "from 16"),
        ("calibration.windows", "-3", "invalid"),
        ("calibration.max_output_block", "128", "from 256 to 262144"),
        ("calibration.max_output_block", "300", "a multiple of 256"),
        ("model.device", "tpu", "unknown variant"),
        ("upload.repository", "nobody", "OWNER/NAME"),
        ("upload.repository", "a/b/c", "OWNER/NAME"),
        ("upload.repository", "/b@main", "OWNER/NAME"),
        ("upload.attempts", "0", "from 1 to 1000"),
        ("retention.source", "drop", "unknown variant"),
        ("retention.budget", "64", "such as"),
        ("retention.budget", "-1 GiB", "such as"),
    ] {
        let mut settings = Settings::default();
        let error = settings.set(key, value).expect_err(key).to_string();
        assert!(error.contains(key) && error.contains(word), "{error}");
        assert_eq!(settings, Settings::default());
    }
    let mut settings = Settings::default();
    settings.quantize.bpw = f64::NAN;
    let error = settings.validate().expect_err("not a number").to_string();
    assert!(error.contains("found NaN"), "{error}");
}

#[test]
fn settings_survive_json() {
    let settings = Settings::default();
    let text = serde_json::to_string(&settings).expect("text");
    assert_eq!(
        serde_json::from_str::<Settings>(&text).expect("settings"),
        settings
    );
    assert!(serde_json::from_str::<Settings>(r#"{"quantize":{"x":1}}"#).is_err());
}

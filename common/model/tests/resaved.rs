//! A configuration means the same model however a version of transformers writes it: the plan of every re-saved
//! configuration equals the plan of the original.
//!
//! `tests/configs/resave.py` writes the files. The published configurations are not part of the project; where they are
//! absent, only the project's own are compared.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use uc_model::ModelConfig;
use uc_model::config::ConfigError;

/// The folders of `tests/configs`, one for each line of transformers.
const LINES: [&str; 2] = ["4.57", "5.24"];

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

/// Reads a configuration. `has_tensor` answers as for a checkpoint without fused experts.
fn parsed(bytes: &[u8]) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_json(bytes, Path::new("config.json"), &|_| false)
}

fn model(path: &Path) -> Result<ModelConfig, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    parsed(&bytes).map_err(|error| error.to_string())
}

/// The names of the files of a folder that end with `.json`, without the ending.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// A name, a plan, and the plan that it should equal.
type Pair = (
    String,
    Result<ModelConfig, String>,
    Result<ModelConfig, String>,
);

/// The difference of a pair, if there is one.
fn difference((name, found, expected): Pair) -> Option<String> {
    match (found, expected) {
        (Ok(found), Ok(expected)) if found == expected => None,
        (Ok(found), Ok(expected)) => {
            let (found, expected) = (format!("{found:#?}"), format!("{expected:#?}"));
            let lines = found.lines().zip(expected.lines());
            let differing = lines.filter(|(one, other)| one != other).take(3);
            Some(format!("{name}: {:?}", differing.collect::<Vec<_>>()))
        }
        (Err(error), _) | (_, Err(error)) => Some(format!("{name}: {error}")),
    }
}

/// Compares pairs of plans, lists all that differ, and returns the number of pairs.
fn assert_equal_plans(pairs: impl IntoIterator<Item = Pair>) -> usize {
    let (mut count, mut failures) = (0, Vec::new());
    for pair in pairs {
        count += 1;
        failures.extend(difference(pair));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    count
}

#[test]
fn every_golden_configuration_re_saved_by_both_lines_gives_the_same_plan() {
    let tests = tests();
    for line in LINES {
        let folder = tests.join("configs").join(line);
        let cases = names(&folder).into_iter();
        let cases = cases.filter(|name| !name.starts_with("default-"));
        let count = assert_equal_plans(cases.map(|case| {
            let original = tests.join("golden").join(&case).join("config.json");
            let resaved = folder.join(format!("{case}.json"));
            (format!("{line}/{case}"), model(&resaved), model(&original))
        }));
        assert!(count > 40, "{line}: {count} cases");
    }
}

#[test]
fn default_configurations_of_every_family_give_the_same_plan_from_both_lines() {
    let configs = tests().join("configs");
    let cases = names(&configs.join(LINES[0])).into_iter();
    let cases = cases.filter(|name| name.starts_with("default-"));
    let count = assert_equal_plans(cases.map(|case| {
        let [old, new] = LINES.map(|line| {
            let mut model = model(&configs.join(line).join(format!("{case}.json")))?;
            // The default number of layers for multi-token prediction differs; they are not part of the model.
            model.ignored_prefixes.clear();
            Ok(model)
        });
        (case, new, old)
    }));
    assert_eq!(count, 18);
}

/// Keys of which the default is a number in some families and follows from other keys in others; files have them.
const WITHOUT_DEFAULT: [&str; 3] = [
    "head_dim",
    "num_key_value_heads",
    "num_nextn_predict_layers", // not a part of the model
];

/// A key that is absent means the default of its field, or is required.
#[test]
fn a_key_that_is_left_out_of_a_default_configuration_changes_nothing() {
    let (mut count, mut failures) = (0, Vec::new());
    for line in LINES {
        let folder = tests().join("configs").join(line);
        for name in names(&folder) {
            if !name.starts_with("default-") {
                continue;
            }
            let complete = small_default(&folder.join(format!("{name}.json")));
            let expected = parsed(Value::Object(complete.clone()).to_string().as_bytes()).unwrap();
            let has_default =
                |key: &&String| *key != "model_type" && !WITHOUT_DEFAULT.contains(&key.as_str());
            for key in complete.keys().filter(has_default) {
                let mut without = complete.clone();
                without.remove(key);
                let found = match parsed(Value::Object(without).to_string().as_bytes()) {
                    Err(ConfigError::Value { found, .. }) if found == "nothing" => continue,
                    found => found.map_err(|error| error.to_string()),
                };
                let name = format!("{line}/{name} without {key}");
                failures.extend(difference((name, found, Ok(expected.clone()))));
                count += 1;
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count > 500, "{count}");
}

/// A default configuration with few layers and experts, enough for every pattern of layers.
fn small_default(path: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(path).unwrap();
    // Not JSON, and the default.
    let text = text.replace("Infinity", "0");
    let mut config: Map<String, Value> = serde_json::from_str(&text).unwrap();
    if let Some(limit) = config.get_mut("time_step_limit") {
        *limit = Value::Null;
    }
    for key in ["num_hidden_layers", "n_layer"] {
        if config.contains_key(key) {
            config.insert(key.into(), 7.into());
        }
    }
    for key in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if config.contains_key(key) {
            config.insert(key.into(), 16.into());
        }
    }
    config
}

/// A value of `published-LINE.json`, in which long lists are abbreviated.
fn expanded(value: &Value, original: &Map<String, Value>) -> Value {
    let Value::Object(map) = value else {
        return value.clone();
    };
    if let (Some(item), Some(times)) = (map.get("repeat"), map.get("times")) {
        return vec![item.clone(); times.as_u64().unwrap() as usize].into();
    }
    if let Some(path) = map.get("copy") {
        let step = |value: Value, key: &Value| value[key.as_str().unwrap()].clone();
        let path = path.as_array().unwrap().iter();
        return path.fold(Value::Object(original.clone()), step);
    }
    let expand = |(key, value): (&String, &Value)| (key.clone(), expanded(value, original));
    Value::Object(map.iter().map(expand).collect())
}

#[test]
fn every_published_configuration_re_saved_by_both_lines_gives_the_same_plan() {
    let named = std::env::var_os("UC_MODELS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| tests().join("../../shared/models"));
    let folder = folder.join("configs");
    if !folder.is_dir() {
        eprintln!(
            "{} does not exist: published configurations are not compared",
            folder.display()
        );
        return;
    }
    for line in LINES {
        let changes = tests().join(format!("configs/published-{line}.json"));
        let changes = std::fs::read(changes).unwrap();
        let changes: BTreeMap<String, Map<String, Value>> =
            serde_json::from_slice(&changes).unwrap();
        assert_equal_plans(changes.iter().map(|(name, change)| {
            let bytes = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
            let original: Map<String, Value> = serde_json::from_slice(&bytes).unwrap();
            let mut resaved = original.clone();
            for key in change["remove"].as_array().unwrap() {
                resaved.remove(key.as_str().unwrap());
            }
            for (key, value) in change["set"].as_object().unwrap() {
                resaved.insert(key.clone(), expanded(value, &original));
            }
            let text = Value::Object(resaved).to_string();
            let model = |bytes| parsed(bytes).map_err(|error| error.to_string());
            (
                format!("{line}/{name}"),
                model(text.as_bytes()),
                model(&bytes),
            )
        }));
        assert_eq!(changes.len(), 33, "{line}");
    }
}

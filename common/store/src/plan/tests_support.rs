//! A small plan for the tests of this crate: two layers, a hidden state that passes through them, and temporary files.

use camino::Utf8PathBuf;

use super::*;

/// A temporary folder as UTF-8.
pub fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("utf-8");
    (folder, path)
}

/// A stage of the small plan.
pub fn stage(
    name: &str,
    per: Per,
    reads: &[&str],
    writes: &[&str],
    settings: &[&str],
) -> StagePlan {
    let refs = |names: &[&str]| {
        names
            .iter()
            .map(|n| n.parse().expect("reference"))
            .collect()
    };
    StagePlan {
        name: name.into(),
        argv: vec![format!("{name}-program")],
        per,
        reads: refs(reads),
        writes: refs(writes),
        settings: settings.iter().map(ToString::to_string).collect(),
        version: 1,
        program_sha256: Sha256Digest::default(),
        cpus: 1,
        declared_memory: None,
        memory: 0,
        max_lead: None,
        optional: false,
        retries: 1,
        stall_timeout: 0,
        weights: None,
    }
}

/// embed -> (load, teacher) per layer -> quantize per layer -> finish.
pub fn small_plan() -> Plan {
    let artifact = |path: &str, temporary| Artifact {
        path: path.into(),
        temporary,
    };
    Plan {
        version: PLAN_VERSION,
        tool_version: "0.0.0".into(),
        model: ModelSource {
            name: "small".into(),
            path: "/model".into(),
            layers: 2,
            linear_parameters: 10,
            total_parameters: 20,
            hub: None,
        },
        pack_dir: "pack".into(),
        settings: Settings::default(),
        externals: BTreeMap::from([(
            "source".into(),
            External {
                files: Vec::new(),
                digest: crate::sha::hash_bytes(b"source"),
            },
        )]),
        artifacts: BTreeMap::from([
            ("weights".into(), artifact("layers/{layer}/weights", true)),
            ("hidden".into(), artifact("hidden/{layer}", true)),
            ("codes".into(), artifact("{pack}/layer_{layer}.uc", false)),
            ("manifest".into(), artifact("{pack}/manifest.json", false)),
        ]),
        stages: vec![
            stage("embed", Per::Run, &["source"], &["hidden@0"], &[]),
            stage("load", Per::Layer, &["source"], &["weights"], &[]),
            stage(
                "teacher",
                Per::Layer,
                &["weights", "hidden"],
                &["hidden+1"],
                &[],
            ),
            stage(
                "quantize",
                Per::Layer,
                &["weights", "hidden"],
                &["codes"],
                &["quantize"],
            ),
            stage(
                "finish",
                Per::Run,
                &["codes", "hidden@last"],
                &["manifest"],
                &[],
            ),
        ],
    }
}

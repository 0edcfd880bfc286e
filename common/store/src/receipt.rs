//! Receipts: what determined the output of a job, and what the output was.
//!
//! A receipt is published after the outputs that it records. Its key consists of named fields, so that a stale job can say
//! which of them changed. It holds no time, so that equal work produces equal receipts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::framed::Frame;
use crate::plan::{ArtifactId, JobId, Plan, Unit};
use crate::run::RunDir;
use crate::sha::Sha256Digest;

/// The file format of receipts.
const FRAME: Frame = Frame {
    magic: *b"UCRECPT\0",
    version: 3,
    what: "receipt",
    max_body: 64 << 20,
    zstd_level: None, // a few hundred bytes, mostly hashes
};

/// Largest receipt that is read, bytes.
const MAX_RECEIPT: u64 = 65 << 20;

/// Named fields that determine the output of a job.
pub type Key = BTreeMap<String, String>;

/// The record of a finished job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Stage name.
    pub stage: String,
    /// What the job worked on.
    pub unit: Unit,
    /// What determined the outputs.
    pub key: Key,
    /// The outputs.
    pub outputs: Vec<OutputRecord>,
}

/// The record of an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Bytes.
    pub size: u64,
    /// Digest.
    pub sha256: [u8; 32],
}

impl Receipt {
    /// Publishes the receipt of a job.
    pub fn write(&self, run: &RunDir) -> Result<(), StoreError> {
        let job = JobId {
            stage: self.stage.clone(),
            unit: self.unit,
        };
        let path = run.receipt_path(&job);
        crate::atomic::write_bytes_below(run.root(), &path, &FRAME.encode(self, &path)?)?;
        Ok(())
    }

    /// Reads the receipt of a job; `None` when there is none.
    pub fn read(run: &RunDir, job: &JobId) -> Result<Option<Self>, StoreError> {
        let path = run.receipt_path(job);
        let bytes = match uc_input::read(&path, MAX_RECEIPT) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let receipt: Self = FRAME.decode(&bytes, &path)?;
        if (&receipt.stage, receipt.unit) != (&job.stage, job.unit) {
            let found = JobId {
                stage: receipt.stage,
                unit: receipt.unit,
            };
            return Err(StoreError::malformed(
                &path,
                "receipt",
                found.to_string(),
                job.to_string(),
            ));
        }
        Ok(Some(receipt))
    }

    /// The record of one output.
    pub fn output(&self, id: &ArtifactId) -> Option<&OutputRecord> {
        self.outputs.iter().find(|record| record.artifact == *id)
    }
}

/// Computes the key that the receipt of a job must have now.
///
/// `digest_of` returns the digest of an input that another job makes, or `None` if it is unknown. In that case the result
/// is that input.
pub fn job_key(
    plan: &Plan,
    job: &JobId,
    mut digest_of: impl FnMut(&ArtifactId) -> Option<Sha256Digest>,
) -> Result<Result<Key, ArtifactId>, StoreError> {
    let stage = plan.stage(&job.stage).ok_or_else(|| StoreError::Unknown {
        kind: "stage",
        name: job.stage.clone(),
        known: plan
            .stages
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    })?;
    let mut key = Key::new();
    key.insert("stage.version".into(), stage.version.to_string());
    key.insert("stage.program".into(), stage.argv.join(" "));
    key.insert("stage.binary".into(), stage.program_sha256.to_string());
    for section in &stage.settings {
        for (field, value) in plan.settings.fields(section) {
            key.insert(format!("setting.{section}.{field}"), value);
        }
    }
    for id in plan.inputs(stage, job.unit) {
        let digest = match plan.external(&id) {
            Some(external) => external.digest,
            None => match digest_of(&id) {
                Some(digest) => digest,
                None => return Ok(Err(id)),
            },
        };
        key.insert(format!("input.{id}"), digest.to_string());
    }
    Ok(Ok(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::{folder, small_plan};
    use crate::sha::hash_bytes;

    fn job(stage: &str, unit: Unit) -> JobId {
        JobId {
            stage: stage.into(),
            unit,
        }
    }

    #[test]
    fn receipts_are_read_back_and_damage_is_detected() {
        let (_keep, folder) = folder();
        let run = RunDir::create(&folder, &small_plan()).expect("run");
        let receipt = Receipt {
            stage: "load".into(),
            unit: Unit::Layer(1),
            key: Key::from([("a".into(), "1".into())]),
            outputs: vec![OutputRecord {
                artifact: ArtifactId::at("weights", 1),
                size: 3,
                sha256: [7; 32],
            }],
        };
        receipt.write(&run).expect("written");
        let load = job("load", Unit::Layer(1));
        assert_eq!(Receipt::read(&run, &load).expect("read"), Some(receipt));
        assert_eq!(
            Receipt::read(&run, &job("load", Unit::Layer(0))).expect("none"),
            None
        );
        let path = run.receipt_path(&load);
        let mut bytes = std::fs::read(&path).expect("bytes");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        crate::atomic::write_bytes(&path, &bytes).expect("written");
        assert!(matches!(
            Receipt::read(&run, &load),
            Err(StoreError::Hash { .. })
        ));
    }

    #[test]
    fn a_receipt_in_the_place_of_another_jobs_is_refused() {
        let (_keep, folder) = folder();
        let run = RunDir::create(&folder, &small_plan()).expect("run");
        let receipt = Receipt {
            stage: "load".into(),
            unit: Unit::Layer(0),
            key: Key::new(),
            outputs: Vec::new(),
        };
        receipt.write(&run).expect("written");
        let bytes = std::fs::read(run.receipt_path(&job("load", Unit::Layer(0)))).expect("bytes");
        crate::atomic::write_bytes(&run.receipt_path(&job("load", Unit::Layer(1))), &bytes)
            .expect("written");
        let error = Receipt::read(&run, &job("load", Unit::Layer(1)))
            .expect_err("other job")
            .to_string();
        assert!(error.contains("load of layer 0"), "{error}");
    }

    #[test]
    fn keys_hold_version_settings_and_inputs() {
        let plan = small_plan();
        let digest = hash_bytes(b"x");
        let key = job_key(&plan, &job("quantize", Unit::Layer(1)), |_| Some(digest))
            .expect("known")
            .expect("all inputs");
        assert_eq!(key["setting.quantize.bpw"], "5.0");
        assert_eq!(key["input.weights@001"], digest.to_string());
        assert_eq!(key["stage.version"], "1");
        let missing = job_key(&plan, &job("quantize", Unit::Layer(1)), |_| None).expect("known");
        assert_eq!(missing, Err(ArtifactId::at("weights", 1)));
        assert!(matches!(
            job_key(&plan, &job("x", Unit::Run), |_| None),
            Err(StoreError::Unknown { .. })
        ));
    }
}

//! A stage of a plan for unit tests.

use uc_store::plan::{Per, StagePlan};

/// A stage that reads and writes nothing, takes one core and is tried twice; its program has its name.
pub fn stage(name: &str, per: Per) -> StagePlan {
    StagePlan {
        name: name.into(),
        argv: vec![name.into()],
        per,
        reads: Vec::new(),
        writes: Vec::new(),
        settings: Vec::new(),
        version: 1,
        program_sha256: Default::default(),
        cpus: 1,
        memory: 0,
        declared_memory: None,
        max_lead: None,
        optional: false,
        retries: 1,
        stall_timeout: 0,
        weights: None,
    }
}

//! Collection of findings: a bounded number of them, in the order of the manifest whatever the order of the work.
//!
//! What a finding says comes from files of others; it is escaped here.

use uc_input::printable;

use super::{Finding, MAX_FINDINGS, Severity};
use crate::error::PackError;

/// Where a finding belongs in the report: the file, then the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position(pub(super) usize, pub(super) usize);

impl Position {
    /// Before all files.
    pub(super) const MANIFEST: Self = Self(0, 0);
    /// After all files.
    pub(super) const FOLDER: Self = Self(usize::MAX, 0);
}

/// The findings of a verification.
#[derive(Default)]
pub(super) struct Findings {
    kept: Vec<(Position, Finding)>,
    omitted: u64,
    errors: u64,
}

impl Findings {
    /// Adds the findings about one file or tensor.
    pub(super) fn add(&mut self, position: Position, log: FindingLog) {
        self.errors += log.errors;
        self.omitted += log.omitted;
        for finding in log.findings {
            if self.kept.len() < MAX_FINDINGS {
                self.kept.push((position, finding));
            } else {
                self.omitted += 1;
            }
        }
    }

    /// Adds those of another collection.
    pub(super) fn merge(&mut self, other: Findings) {
        self.errors += other.errors;
        self.omitted += other.omitted;
        let room = MAX_FINDINGS
            .saturating_sub(self.kept.len())
            .min(other.kept.len());
        self.omitted += (other.kept.len() - room) as u64;
        self.kept.extend(other.kept.into_iter().take(room));
    }

    /// Number of findings of severity error.
    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// The findings by position, and the number of those that were left out.
    pub(super) fn into_sorted(mut self) -> (Vec<Finding>, u64) {
        self.kept.sort_by_key(|(position, _)| *position);
        let findings = self.kept.into_iter().map(|(_, finding)| finding);
        (findings.collect(), self.omitted)
    }
}

/// Collects the findings about one file or tensor.
pub(super) struct FindingLog {
    /// Name of the file.
    pub(super) file: String,
    findings: Vec<Finding>,
    omitted: u64,
    errors: u64,
}

impl FindingLog {
    pub(super) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            findings: Vec::new(),
            omitted: 0,
            errors: 0,
        }
    }

    /// Adds a finding.
    pub(super) fn add(&mut self, severity: Severity, tensor: Option<&str>, message: &str) {
        self.errors += u64::from(severity == Severity::Error);
        if self.findings.len() == MAX_FINDINGS {
            self.omitted += 1;
            return;
        }
        self.findings.push(Finding {
            severity,
            file: printable(&self.file).into_owned(),
            tensor: tensor.map(|name| printable(name).into_owned()),
            message: printable(message).into_owned(),
        });
    }

    /// Sorts the findings by the names of their files.
    pub(super) fn sort_by_file(&mut self) {
        self.findings.sort_by(|a, b| a.file.cmp(&b.file));
    }

    pub(super) fn add_error(&mut self, tensor: Option<&str>, error: &PackError) {
        self.add(Severity::Error, tensor, &error.text());
    }

    /// Returns the value of a result, or records its error as a finding.
    pub(super) fn record<T>(
        &mut self,
        tensor: Option<&str>,
        result: Result<T, PackError>,
    ) -> Option<T> {
        result.map_err(|error| self.add_error(tensor, &error)).ok()
    }
}

//! Rows of a linear are those of the whole linear, however the files store it: as it is, transposed, or beside other experts.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::path::Path;

use uc_model::source::SourceError;
use uc_model::spec::Stored;
use uc_model::{ModelConfig, SourceFolder};

#[test]
fn rows_of_every_linear_of_every_golden_model_are_those_of_the_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let config = ModelConfig::load(&folder).unwrap();
        let source = SourceFolder::open(&folder).unwrap();
        for plan in config.layer_plans() {
            for linear in &plan.linears {
                let whole = source.read_planned(&plan, &linear.name).unwrap();
                let mut bytes = Vec::new();
                for first in (0..linear.rows).step_by(5) {
                    let count = 5.min(linear.rows - first);
                    let rows = source.read_planned_rows(&plan, &linear.name, first, count);
                    let rows = rows.unwrap();
                    assert_eq!(rows.shape, [count, linear.cols]);
                    assert_eq!((&rows.name, rows.dtype), (&whole.name, whole.dtype));
                    bytes.extend(rows.bytes);
                }
                assert!(bytes == whole.bytes, "{}: {}", folder.display(), whole.name);
                let beyond = source.read_planned_rows(&plan, &linear.name, linear.rows, 1);
                assert!(matches!(beyond, Err(SourceError::NoRows { .. })));
                kinds.insert(match linear.stored {
                    Stored::Whole => "whole",
                    Stored::Transposed => "transposed",
                    Stored::Slice { .. } => "slice",
                });
            }
            let absent = source.read_planned_rows(&plan, "absent.weight", 0, 1);
            assert!(matches!(absent, Err(SourceError::NoTensor { .. })));
        }
    }
    let expected = ["slice", "transposed", "whole"];
    assert!(kinds.into_iter().eq(expected));
}

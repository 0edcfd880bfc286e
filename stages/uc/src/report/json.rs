//! Results as JSON on standard output.

use serde::Serialize;

/// Prints a value on standard output.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    uc_store::output::print_line(serde_json::to_string_pretty(value)?);
    Ok(())
}

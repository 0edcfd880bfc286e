//! Why jobs have to run, as lines of text: jobs of a stage with the same reasons share a line.

use std::collections::BTreeMap;

use uc_store::freshness::{Freshness, PendingWork, Reason};
use uc_store::plan::{JobId, Plan};

/// Why jobs that were complete have to run again, one line per stage and reason.
pub fn stale_lines(plan: &Plan, work: &PendingWork) -> Vec<String> {
    grouped(plan, work, |reason| {
        !matches!(
            reason,
            Reason::NoReceipt | Reason::Waits(_) | Reason::Needed { .. }
        )
    })
}

/// Every job that has to run and why, one line per stage and reason.
pub fn pending_lines(plan: &Plan, work: &PendingWork) -> Vec<String> {
    grouped(plan, work, |_| true)
}

/// One line per stage and set of reasons; jobs without a reason that `include` accepts are left out.
fn grouped(plan: &Plan, work: &PendingWork, include: impl Fn(&Reason) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    for stage in &plan.stages {
        let mut groups: BTreeMap<String, Vec<Option<u32>>> = BTreeMap::new();
        for unit in stage.units(plan.model.layers) {
            let id = JobId {
                stage: stage.name.clone(),
                unit,
            };
            let Some(Freshness::Stale(reasons)) = work.states.get(&id) else {
                continue;
            };
            let texts: Vec<String> = reasons
                .iter()
                .filter(|reason| include(reason))
                .map(without_layers)
                .collect();
            if !texts.is_empty() {
                groups
                    .entry(texts.join("; "))
                    .or_default()
                    .push(unit.layer());
            }
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, layers)| layers[0]);
        for (text, layers) in groups {
            lines.push(format!("{}{}: {text}", stage.name, ranges(&layers)));
        }
    }
    lines
}

/// A reason as text that is the same for every layer.
fn without_layers(reason: &Reason) -> String {
    match reason {
        Reason::Waits(id) => format!("waits for {}", id.name),
        Reason::Needed { artifact, by } => {
            format!(
                "{} was deleted and {} needs it again",
                artifact.name, by.stage
            )
        }
        Reason::MissingOutput(id) => format!("output {} is missing", id.name),
        Reason::Changed { field, .. } if field.starts_with("input.") => {
            let name = field
                .trim_start_matches("input.")
                .split('@')
                .next()
                .unwrap_or(field);
            format!("input {name} changed")
        }
        other => other.to_string(),
    }
}

/// Layers in the form " layers 0-3, 7"; empty for the job of the whole run.
fn ranges(layers: &[Option<u32>]) -> String {
    let layers: Vec<u32> = layers.iter().flatten().copied().collect();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for layer in layers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => parts.push((layer, layer)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let texts: Vec<String> = parts.iter().map(text).collect();
    match parts.as_slice() {
        [] => String::new(),
        [(first, last)] if first == last => format!(" layer {first}"),
        _ => format!(" layers {}", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_listed_as_ranges() {
        let layers = |all: &[u32]| all.iter().copied().map(Some).collect::<Vec<_>>();
        assert_eq!(ranges(&[None]), "");
        assert_eq!(ranges(&layers(&[4])), " layer 4");
        assert_eq!(ranges(&layers(&[0, 1, 2, 5, 7, 8])), " layers 0-2, 5, 7-8");
    }

    #[test]
    fn reasons_read_the_same_for_every_layer() {
        let changed = |field: &str| Reason::Changed {
            field: field.into(),
            old: "a".into(),
            new: "b".into(),
        };
        assert_eq!(
            without_layers(&changed("input.codes@003")),
            "input codes changed"
        );
        assert_eq!(
            without_layers(&changed("stage.version")),
            "`stage.version` changed a -> b"
        );
    }
}

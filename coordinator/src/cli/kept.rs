//! What a backup keeps beside its records, in words.

use super::output::{count, listing, size};
use crate::kept::KeptSummary;

/// In one line.
pub(crate) fn counted(kept: &KeptSummary) -> String {
    let settings: usize = kept.settings.iter().map(|s| s.values.len()).sum();
    let mut words = vec![
        format!("{} users", kept.users.len()),
        format!("{} libraries of functions", kept.libraries.len()),
        format!("{} settings", count(settings as u64)),
    ];
    for missing in &kept.missing {
        words.push(format!("NOT: {} of node {} ({})", missing.what, missing.node, missing.why));
    }
    words.join(", ")
}

/// In full, but for the settings: `-o json` shows them.
pub(crate) fn shown(kept: &KeptSummary) -> String {
    let users = kept.users.iter().map(|u| [u.name.clone(), u.nodes.join(" "), u.rules.clone()]);
    let libraries =
        kept.libraries.iter().map(|l| [l.name.clone(), l.engine.clone(), size(l.bytes), l.nodes.join(" ")]);
    let nodes = kept.topology.iter().map(|n| {
        let follows = if n.follows.is_empty() { "-" } else { n.follows.as_str() };
        [
            n.node.clone(),
            n.address.clone(),
            n.role.clone(),
            n.slots.clone(),
            n.config_epoch.to_string(),
            n.id.clone(),
            follows.to_owned(),
        ]
    });
    let settings = kept.settings.iter().map(|s| format!("{} of node {}", s.values.len(), s.node));
    let settings: Vec<_> = settings.collect();
    let mut out = format!(
        "\nusers (hashes of passwords are kept, and shown nowhere)\n{}\nlibraries of functions\n{}\nnodes of the store\n{}",
        listing(["USER", "NODES", "RULES"], users, "none"),
        listing(["LIBRARY", "ENGINE", "SIZE", "NODES"], libraries, "none"),
        listing(["NODE", "ADDRESS", "ROLE", "SLOTS", "EPOCH", "ID", "FOLLOWS"], nodes, "none")
    );
    if !settings.is_empty() {
        out.push_str(&format!("\nsettings: {} (-o json shows them)\n", settings.join(", ")));
    }
    for missing in &kept.missing {
        let node = if missing.node.is_empty() { String::new() } else { format!(" of node {}", missing.node) };
        out.push_str(&format!("\nNOT KEPT: {}{node}: {}\n", missing.what, missing.why));
    }
    out
}

/// What is not as it was, in lines; nothing where all is.
pub(crate) fn warnings(warnings: &[String]) -> String {
    warnings
        .iter()
        .map(|warning| format!("\nWARNING: {warning}"))
        .chain((!warnings.is_empty()).then(|| "\n".to_owned()))
        .collect()
}

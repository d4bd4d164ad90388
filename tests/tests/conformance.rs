//! The conformance suite: what every engine that serves data itself must do, written once and run for each.

#[path = "conformance/changes.rs"]
mod changes;
#[path = "conformance/clones.rs"]
mod clones;
#[path = "conformance/collect.rs"]
mod collect;
#[path = "conformance/cut.rs"]
mod cut;
#[path = "conformance/durable.rs"]
mod durable;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "conformance/reads.rs"]
mod reads;
#[path = "conformance/restore.rs"]
mod restore;
#[path = "conformance/spool.rs"]
mod spool;

/// Runs each named case for each engine.
macro_rules! for_engines {
    ($($case:path as $name:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $name() { $case(&crate::fixture::Fixture::memory()) })*
        }
        mod embedded {
            $(#[test] fn $name() { $case(&crate::fixture::Fixture::embedded()) })*
        }
    };
}

for_engines! {
    crate::reads::versions_at_timestamps as versions_at_timestamps,
    crate::reads::scan_order_of_binary_keys as scan_order_of_binary_keys,
    crate::reads::pages_read_one_state as pages_read_one_state,
    crate::reads::batches_are_atomic as batches_are_atomic,
    crate::reads::wrong_slots_and_sizes_are_refused as wrong_slots_and_sizes_are_refused,
    crate::reads::clients_ahead_of_the_clock as clients_ahead_of_the_clock,
    crate::reads::model as model,
    crate::cut::hold_blocks_and_ends_by_itself as hold_blocks_and_ends_by_itself,
    crate::cut::release_ends_a_hold as release_ends_a_hold,
    crate::cut::a_write_voids_the_cut as a_write_voids_the_cut,
    crate::cut::an_expired_hold_still_seals_if_nothing_came as an_expired_hold_still_seals_if_nothing_came,
    crate::cut::seal_pins_and_binds_later_commits as seal_pins_and_binds_later_commits,
    crate::cut::seal_needs_the_own_hold as seal_needs_the_own_hold,
    crate::cut::cuts_under_load_are_consistent as cuts_under_load_are_consistent,
    crate::changes::changes_equal_the_difference_of_scans as changes_equal_the_difference_of_scans,
    crate::changes::many_changes_in_one_slot as many_changes_in_one_slot,
    crate::collect::pins_survive_collection as pins_survive_collection,
    crate::collect::too_old_is_refused as too_old_is_refused,
    crate::collect::collection_changes_nothing_readable as collection_changes_nothing_readable,
    crate::restore::non_empty_needs_in_place as non_empty_needs_in_place,
    crate::restore::abort_leaves_the_old_data as abort_leaves_the_old_data,
    crate::restore::commit_switches_to_a_new_incarnation as commit_switches_to_a_new_incarnation,
    crate::restore::clients_are_refused_while_restoring as clients_are_refused_while_restoring,
    crate::restore::an_unfinished_part_leaves_nothing as an_unfinished_part_leaves_nothing,
    crate::restore::bad_records_are_refused as bad_records_are_refused,
    crate::restore::parts_in_any_order_in_parallel as parts_in_any_order_in_parallel,
}

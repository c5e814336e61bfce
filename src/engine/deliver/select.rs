//! Which of the changes that wait go into the next batch.

use crate::{
    store::{OutboxEntry, Waiting},
    target::{BatchLimits, FactChange, batch::Packer},
};

/// The next batch: of the outbox whole commits as far as they fit, else the start of the first one; and if that is all of the outbox, what
/// fits of the backlog.
pub(super) fn live_batch(
    outbox: Vec<OutboxEntry>,
    backlog: Vec<Waiting>,
    change: impl Fn(&Waiting) -> FactChange,
    limits: BatchLimits,
) -> Vec<Waiting> {
    let commits: Vec<u64> = outbox.iter().map(|entry| entry.key.commit_no).collect();
    let mut entries: Vec<Waiting> = outbox.into_iter().map(Waiting::from).collect();
    let mut packer = Packer::new(limits);
    let mut goes_on = |entry: &Waiting| matches!(packer.push(change(entry)), Ok(None));
    let fits = entries.iter().take_while(|entry| goes_on(entry)).count();
    if fits < entries.len() {
        let next = commits[fits];
        // One commit larger than a batch is split; an entry that no batch can hold goes alone: the fact store's answer parks it.
        let length = commits[..fits].iter().rposition(|commit| *commit != next).map_or(fits.max(1), |end| end + 1);
        entries.truncate(length);
        return entries;
    }
    // What the outbox says of a fact is later than what the backlog says.
    let live = entries.len();
    for entry in backlog {
        let told = entries[..live].iter().any(|live| (live.view, &live.row) == (entry.view, &entry.row));
        if told {
            continue;
        }
        if !goes_on(&entry) {
            break;
        }
        entries.push(entry);
    }
    entries
}

/// Batches of the backlog alone, in its order.
pub(super) fn batches(
    backlog: Vec<Waiting>,
    change: impl Fn(&Waiting) -> FactChange,
    most: usize,
    limits: BatchLimits,
) -> Vec<Vec<Waiting>> {
    let limits = BatchLimits { entries: limits.entries.min(most.max(1)), ..limits };
    let mut packer = Packer::new(limits);
    let mut batches: Vec<Vec<Waiting>> = vec![Vec::new()];
    for entry in backlog {
        match packer.push(change(&entry)) {
            Ok(None) => {}
            Ok(Some(_)) => batches.push(Vec::new()),
            Err(_) => {
                // Alone, as above.
                packer.cut();
                batches.extend([vec![entry], Vec::new()]);
                continue;
            }
        }
        batches.last_mut().expect("there is always one").push(entry);
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

//! Commits that are looked at and not sent: what `--shadow` takes out of the outbox.
//!
//! What is taken out never reaches the fact store by this way, so no source counts as compared any more: the next run that delivers begins
//! with a comparison, which finds whatever was never sent. [`Store::doubt_comparisons`] says so durably before the first commit is taken.

use rusqlite::OptionalExtension;

use crate::{
    data::{Position, Row},
    store::{Store, StoreError, ViewId, facts::Set, outbox::OutboxEntry},
    target::Op,
};

/// A commit that was taken out.
#[derive(Debug)]
pub struct Taken {
    /// Its number.
    pub commit_no: u64,
    /// Where its source stood when it was taken, if no other commit came after it: everything up to here has been taken.
    pub position: Option<Position>,
    /// What it changes.
    pub changes: TakenChanges,
}

/// What a commit that was taken out changes.
#[derive(Debug)]
pub enum TakenChanges {
    /// Each fact.
    Listed(Vec<OutboxEntry>),
    /// How many facts, there being too many.
    Counted(Vec<(ViewId, Op, u64)>),
}

impl Store {
    /// Takes whole commits out of the outbox: as many as have at most `limit` changes together, or one that has more, whose changes are
    /// only counted.
    pub fn take(&mut self, limit: usize) -> Result<Vec<Taken>, StoreError> {
        let mut entries = self.outbox(limit + 1)?;
        let Some(OutboxEntry { key: last, .. }) = entries.last() else { return Ok(Vec::new()) };
        let last = last.commit_no;
        if entries.len() > limit {
            // The last one may go on.
            entries.retain(|entry| entry.key.commit_no < last);
        }
        let mut taken = Vec::new();
        for commit in entries.chunk_by(|a, b| a.key.commit_no == b.key.commit_no) {
            let changes = TakenChanges::Listed(commit.to_vec());
            taken.push(Taken { commit_no: commit[0].key.commit_no, position: None, changes });
        }
        if taken.is_empty() {
            taken.push(Taken { commit_no: last, position: None, changes: TakenChanges::Counted(self.counts(last)?) });
        }
        let to = taken[taken.len() - 1].commit_no;
        let gone = self.write(|tx| {
            let gone: u64 =
                tx.query_row("SELECT coalesce(sum(count - sent), 0) FROM outbox WHERE commit_no <= ?1", [to], |row| row.get(0))?;
            tx.execute("DELETE FROM outbox WHERE commit_no <= ?1", [to])?;
            Ok(gone)
        })?;
        self.outbox_len -= gone;
        if let (0, Some(last)) = (self.outbox_len, taken.last_mut()) {
            last.position = self.stands(&last.changes)?;
        }
        Ok(taken)
    }

    fn counts(&self, commit_no: u64) -> Result<Vec<(ViewId, Op, u64)>, StoreError> {
        self.read(|connection| {
            let mut select = connection
                .prepare("SELECT view, op, sum(count - sent) FROM outbox WHERE commit_no = ?1 GROUP BY view, op ORDER BY 1, 2")?;
            select.query_map([commit_no], |row| Ok((ViewId(row.get(0)?), row.get(1)?, row.get(2)?)))?.collect()
        })
    }

    /// Where the source of a commit stands.
    fn stands(&self, changes: &TakenChanges) -> Result<Option<Position>, StoreError> {
        let view = match changes {
            TakenChanges::Listed(entries) => entries.first().map(|entry| entry.view),
            TakenChanges::Counted(counts) => counts.first().map(|(view, ..)| *view),
        };
        let Some(view) = view else { return Ok(None) };
        let sql = "SELECT settled FROM source WHERE name = (SELECT source FROM view WHERE id = ?1)";
        let text: Option<Option<String>> = self.read(|connection| connection.query_row(sql, [view.0], |row| row.get(0)).optional())?;
        text.flatten().map(|text| text.parse()).transpose().map_err(|_| self.malformed("position"))
    }

    /// Of each fact, whether it is desired.
    pub fn desires(&self, facts: &[(ViewId, Row)]) -> Result<Vec<bool>, StoreError> {
        self.read(|connection| facts.iter().map(|(view, row)| Set::Fact.of(connection, *view).contains(row)).collect())
    }
}

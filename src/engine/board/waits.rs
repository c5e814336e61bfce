//! Waiting until a mark that the engine moves forward has passed a place.
//!
//! ```text
//! wait(place) ──under the lock──> already passed? ──yes──> answer
//!                                      └──no──> entry ──set(mark) passes it──> answer
//!                                                  └──dropped: time ran out──> the entry goes
//! ```
//!
//! A waiter looks at the mark and enters itself under one lock, and [`Waits::set`] moves the mark and takes out whom it passed under the
//! same one: a mark cannot come in between, so nobody waits for what has already happened. Each waiter has a channel of its own and is
//! woken once, when its place is passed: a commit compares its position with every entry, which is microseconds for a thousand, and
//! does not wake those who wait for something else. (With a `watch` channel it wakes everybody, which at a thousand waiters costs more
//! than the commit.)

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::{oneshot, watch};

use crate::{
    data::Position,
    engine::board::{Board, SourceLine, TargetState, state_name},
    target::Offset,
};

/// What is waited for.
pub(super) trait Mark: Clone + Default {
    /// Where it may get to.
    type Place: Clone;

    /// Whether who waits for `place` has waited long enough.
    fn passes(&self, place: &Self::Place) -> bool;

    /// Whether `a` is passed no later than `b`.
    fn sooner(a: &Self::Place, b: &Self::Place) -> bool;
}

/// How far one source is in the desired facts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Its position, once the fact store was compared with the snapshot.
    pub position: Option<Position>,
    /// The last commit number that was given out when it got there.
    pub commit_no: u64,
}

/// How far the fact store is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Every commit up to this number is acknowledged.
    pub commit_no: u64,
    /// The fact store's last token.
    pub offset: Option<Offset>,
}

impl Mark for Applied {
    type Place = Position;

    fn passes(&self, place: &Position) -> bool {
        self.position.as_ref().is_some_and(|here| here.reaches(place))
    }

    fn sooner(a: &Position, b: &Position) -> bool {
        b.reaches(a)
    }
}

impl Mark for Delivered {
    /// A commit number.
    type Place = u64;

    fn passes(&self, place: &u64) -> bool {
        self.commit_no >= *place
    }

    fn sooner(a: &u64, b: &u64) -> bool {
        a <= b
    }
}

/// A mark and those who wait for it.
pub(super) struct Waits<M: Mark> {
    line: Mutex<Line<M>>,
    next: watch::Sender<Option<M::Place>>,
}

struct Line<M: Mark> {
    mark: M,
    tickets: u64,
    waiting: BTreeMap<u64, (M::Place, oneshot::Sender<M>)>,
}

/// Takes an entry out when its waiter goes, which it may do at any time.
struct Ticket<'a, M: Mark> {
    waits: &'a Waits<M>,
    number: u64,
}

impl<M: Mark> Default for Waits<M> {
    fn default() -> Self {
        Self { line: Mutex::new(Line { mark: M::default(), tickets: 0, waiting: BTreeMap::new() }), next: watch::Sender::new(None) }
    }
}

impl<M: Mark> Waits<M> {
    /// The mark as it is now.
    pub(super) fn get(&self) -> M {
        self.line().mark.clone()
    }

    /// The place that is waited for and passed soonest; `None` when nobody waits.
    ///
    /// The soonest and not the furthest: who waits for what may never come must not hide who waits for what is almost there.
    pub(super) fn next(&self) -> watch::Receiver<Option<M::Place>> {
        self.next.subscribe()
    }

    /// Moves the mark, and wakes those whose place it passes.
    pub(super) fn set(&self, mark: M) {
        let mut line = self.line();
        let passed: Vec<u64> = line.waiting.iter().filter(|(_, (place, _))| mark.passes(place)).map(|(number, _)| *number).collect();
        for number in &passed {
            if let Some((_, waiter)) = line.waiting.remove(number) {
                // Its time may have run out in this moment.
                let _ = waiter.send(mark.clone());
            }
        }
        line.mark = mark;
        if !passed.is_empty() {
            self.find_next(&line);
        }
    }

    /// Waits until the mark has passed `place`, and gives the mark that did.
    pub(super) async fn wait(&self, place: &M::Place) -> M {
        let (answer, _ticket) = {
            let mut line = self.line();
            if line.mark.passes(place) {
                return line.mark.clone();
            }
            let (waiter, answer) = oneshot::channel();
            let number = line.tickets;
            line.tickets += 1;
            line.waiting.insert(number, (place.clone(), waiter));
            self.next.send_if_modified(|next| {
                let sooner = next.as_ref().is_none_or(|next| !M::sooner(next, place));
                if sooner {
                    *next = Some(place.clone());
                }
                sooner
            });
            (answer, Ticket { waits: self, number })
        };
        answer.await.expect("an entry goes only with its waiter or after an answer")
    }

    /// Looks for the soonest place anew, after entries have gone.
    fn find_next(&self, line: &Line<M>) {
        let places = line.waiting.values().map(|(place, _)| place);
        let soonest = places.reduce(|soonest, place| if M::sooner(soonest, place) { soonest } else { place });
        self.next.send_replace(soonest.cloned());
    }

    fn line(&self) -> MutexGuard<'_, Line<M>> {
        self.line.lock().expect("nobody panics while holding the line")
    }
}

impl<M: Mark> Drop for Ticket<'_, M> {
    fn drop(&mut self) {
        let mut line = self.waits.line();
        let Some((place, _)) = line.waiting.remove(&self.number) else { return };
        // A thousand whose time runs out at once are a thousand looks through the rest only if each was the soonest.
        if self.waits.next.borrow().as_ref().is_none_or(|next| M::sooner(&place, next)) {
            self.waits.find_next(&line);
        }
    }
}

impl Board {
    /// The source that can get to `position`: the one called `name`, or without a name the only one that counts in the position's
    /// measure. Else what to ask for instead, for a person.
    pub fn source_of(&self, name: Option<&str>, position: &Position) -> Result<usize, String> {
        let lines = self.lines();
        let names = |of: &dyn Fn(&str) -> bool| {
            let lines = lines.sources.iter().filter(|line| of(line.kind));
            lines.map(|line| format!("\"{}\"", line.name)).collect::<Vec<_>>().join(", ")
        };
        let (kind, measure) = measure(position);
        let mut fitting = lines.sources.iter().enumerate().filter(|(_, line)| line.kind == kind);
        match (name, fitting.next(), fitting.next()) {
            (Some(name), _, _) => {
                let found = lines.sources.iter().position(|line| line.name == name);
                let found = found.ok_or_else(|| format!("there is no source \"{name}\"; there are: {}", names(&|_| true)))?;
                let line = &lines.sources[found];
                if line.kind == kind { Ok(found) } else { Err(format!("{measure}, and {}", expects(line))) }
            }
            (None, Some((only, _)), None) => Ok(only),
            (None, Some(_), Some(_)) => {
                Err(format!("{measure}, and several sources count so; name one with source=: {}", names(&|other| other == kind)))
            }
            (None, None, _) => {
                let expected: Vec<String> = lines.sources.iter().map(expects).collect();
                Err(format!("{measure}, and {}", expected.join("; ")))
            }
        }
    }

    /// Waits until the facts of every commit of `source` up to `position` are acknowledged by the fact store.
    pub async fn wait(&self, source: usize, position: &Position) -> Option<Offset> {
        let commit_no = self.applied[source].wait(position).await.commit_no;
        self.delivered.wait(&commit_no).await.offset
    }

    /// What those who wait for `position` of `source` are kept by, for a person.
    pub fn kept_by(&self, source: usize, position: &Position) -> String {
        let applied = self.applied[source].get().passes(position);
        let lines = self.lines();
        let line = &lines.sources[source];
        match (&line.position, &lines.target) {
            (None, _) => format!("source \"{}\" is {}", line.name, state_name(&line.state)),
            (Some(here), _) if !here.reaches(position) => format!("source \"{}\" is {} at {here}", line.name, state_name(&line.state)),
            (Some(_), TargetState::Failing(problem)) => format!("the fact store does not answer: {problem}"),
            (Some(_), TargetState::Unknown | TargetState::Reachable) if applied => format!("{} facts wait to be sent", lines.queues.outbox),
            (Some(_), TargetState::Unknown | TargetState::Reachable) => {
                format!("source \"{}\" was not compared with the fact store yet", line.name)
            }
        }
    }

    /// What somebody waits for at `source`, the soonest.
    pub fn wanted(&self, source: usize) -> watch::Receiver<Option<Position>> {
        self.applied[source].next()
    }
}

/// The kind of source that counts so, and what the position is.
fn measure(position: &Position) -> (&'static str, &'static str) {
    match position {
        Position::Lsn(..) => ("postgres", "an LSN is a position of PostgreSQL"),
        Position::Time(..) => ("mongodb", "a cluster time is a position of MongoDB"),
        Position::Digest(_) => ("csv", "a SHA-256 digest is a position of a CSV file"),
    }
}

/// Which positions a source has.
fn expects(line: &SourceLine) -> String {
    let form = match line.kind {
        "postgres" => "has an LSN such as 16/B374D848, which pg_current_wal_lsn() returns",
        "csv" => "has the SHA-256 digest of the file, which sha256sum prints",
        _ => "has a cluster time such as 1732284000:5, the operationTime of the session",
    };
    format!("source \"{}\" is {} and {form}", line.name, line.kind)
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use futures_util::{FutureExt, future::poll_immediate, poll};

    use super::*;

    impl Mark for u64 {
        type Place = u64;

        fn passes(&self, place: &u64) -> bool {
            self >= place
        }

        fn sooner(a: &u64, b: &u64) -> bool {
            a <= b
        }
    }

    #[test]
    fn a_mark_answers_those_it_passes_and_no_others() {
        let waits = Waits::<u64>::default();
        waits.set(3);
        assert_eq!(waits.wait(&3).now_or_never(), Some(3), "passed already");
        futures_util::future::FutureExt::now_or_never(async {
            let (mut five, mut nine) = (pin!(waits.wait(&5)), pin!(waits.wait(&9)));
            assert_eq!((poll!(&mut five), poll!(&mut nine)), (Poll::Pending, Poll::Pending));
            waits.set(4);
            assert_eq!(poll!(&mut five), Poll::Pending);
            waits.set(7);
            assert_eq!((poll!(&mut five), poll!(&mut nine)), (Poll::Ready(7), Poll::Pending));
            waits.set(9);
            assert_eq!(poll!(&mut nine), Poll::Ready(9));
        })
        .expect("nothing here waits");
        assert!(waits.line().waiting.is_empty());
    }

    #[test]
    fn who_goes_leaves_nothing_behind_and_the_soonest_place_is_told() {
        let waits = Waits::<u64>::default();
        let next = waits.next();
        let mut far = Box::pin(waits.wait(&1_000_000));
        assert_eq!(poll_immediate(&mut far).now_or_never(), Some(None));
        assert_eq!(*next.borrow(), Some(1_000_000));
        let mut near = Box::pin(waits.wait(&5));
        assert_eq!(poll_immediate(&mut near).now_or_never(), Some(None));
        assert_eq!(*next.borrow(), Some(5), "who waits for ever hides nobody");
        waits.set(6);
        assert_eq!(*next.borrow(), Some(1_000_000));
        assert_eq!(poll_immediate(&mut near).now_or_never(), Some(Some(6)));
        drop(far);
        assert_eq!(*next.borrow(), None);
        assert!(waits.line().waiting.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_mark_comes_between_looking_and_waiting() {
        let waits = std::sync::Arc::new(Waits::<u64>::default());
        let waiters: Vec<_> = (0..2_000_u64)
            .map(|place| {
                let waits = waits.clone();
                tokio::spawn(async move { waits.wait(&place).await })
            })
            .collect();
        for mark in 0..2_000 {
            waits.set(mark);
            tokio::task::yield_now().await;
        }
        for (place, waiter) in waiters.into_iter().enumerate() {
            assert!(waiter.await.expect("it does not panic") >= place as u64);
        }
    }
}

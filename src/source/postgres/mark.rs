//! The mark: the last commit before a position, which proves that the server's history still is the one the position is of.
//!
//! An LSN is a place in a log, not a state. A server that was put back to an earlier state (a disk snapshot, a base backup, a standby that
//! lacked the last commits) writes other commits at the same places. A position that is resumed there skips all of them up to
//! itself, deletes included, and no comparison of LSNs can tell: the slot may have been put back with the server, or made anew on it,
//! and by the time somebody looks the log may be long again.
//!
//! So a position carries its last commit: where its record starts and ends, its transaction and its time, to the microsecond. The
//! server is never told more than the *start* of that record, hence it always sends that commit again: a stream that begins with it
//! continues the history that was applied, and one that does not is another one. All commits between the mark and the position were
//! received when the position was stored, namely none, so one that turns up there is proof of another history as well. It costs one
//! commit that is sent twice after each connect.
//!
//! A server that shuts down waits until everything is acknowledged, and asks for it. Then it is told the whole position. At the next start
//! its slot stands behind the mark and not beyond the position ([`Resume::Confirmed`]), which is proof, too: nobody but us
//! tells a slot so, and one that was made anew on the same log stands beyond.
//!
//! Without a mark, which is so from a snapshot until the first heartbeat comes back a moment later, there remains what LSNs tell: the
//! slot is not beyond the position, the log is not before it, and no timeline ended before it.

use std::str::FromStr;

use crate::data::{Lsn, Position, ResumeToken};

/// A commit, told apart from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The timeline on which it was received.
    pub(crate) timeline: u32,
    /// Where its record starts.
    pub(crate) start: Lsn,
    /// Where its record ends.
    pub(crate) end: Lsn,
    /// Its transaction.
    pub(crate) xid: u32,
    /// When it was committed, in microseconds as the log has them.
    pub(crate) time: i64,
}

impl Mark {
    /// Kept with a position.
    pub(crate) fn token(&self) -> ResumeToken {
        let Self { timeline, start, end, xid, time } = self;
        ResumeToken::new(&format!("{timeline} {start} {end} {xid} {time}"))
    }

    /// The token of a position that may have none.
    pub(crate) fn token_of(mark: Option<Self>) -> ResumeToken {
        mark.map(|mark| mark.token()).unwrap_or_default()
    }

    /// What [`Mark::token`] has written; `None` also for what no version of ours has written.
    pub(crate) fn of(token: &ResumeToken) -> Option<Self> {
        let mut parts = token.data()?.split(' ');
        Some(Self {
            timeline: next(&mut parts)?,
            start: next(&mut parts)?,
            end: next(&mut parts)?,
            xid: next(&mut parts)?,
            time: next(&mut parts)?,
        })
    }
}

fn next<'a, T: FromStr>(parts: &mut impl Iterator<Item = &'a str>) -> Option<T> {
    parts.next()?.parse().ok()
}

/// What the server says about its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Log {
    /// Its timeline, which a promotion and a point-in-time recovery change.
    pub(crate) timeline: u32,
    /// Its end.
    pub(crate) end: Lsn,
}

/// What the server is told of a durable position: it keeps the mark, unless it `asks` because it shuts down.
pub(crate) fn acknowledged(position: &Option<Position>, asks: bool) -> Option<Lsn> {
    match position {
        Some(Position::Lsn(lsn, token)) => Some(Mark::of(token).filter(|_| !asks).map_or(*lsn, |mark| mark.start)),
        Some(Position::Time(..) | Position::Digest(_)) | None => None,
    }
}

/// A position of this source.
pub(crate) fn lsn(position: &Option<Position>) -> Option<Lsn> {
    match position {
        Some(Position::Lsn(lsn, _)) => Some(*lsn),
        Some(Position::Time(..) | Position::Digest(_)) | None => None,
    }
}

/// How a stream goes on from a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resume {
    /// It has to begin with the mark.
    Mark(Mark),
    /// The server has confirmed what is behind the mark, or there is none.
    Confirmed(Option<Mark>),
}

impl Resume {
    /// From the position `from` with its mark, where the slot has `confirmed` what is before; `None` if it has let go of something.
    pub(crate) fn of(confirmed: Lsn, from: Lsn, mark: Option<Mark>) -> Option<Self> {
        match mark {
            Some(mark) if confirmed <= mark.start => Some(Self::Mark(mark)),
            Some(mark) => (mark.end <= confirmed && confirmed <= from).then_some(Self::Confirmed(Some(mark))),
            None => (confirmed <= from).then_some(Self::Confirmed(None)),
        }
    }

    /// Whether nothing of the stream is needed to believe it.
    pub(crate) fn is_proof(self) -> bool {
        match self {
            Self::Mark(_) => false,
            Self::Confirmed(_) => true,
        }
    }

    /// Where a stream starts that goes on from `from`.
    pub(crate) fn start(self, from: Lsn) -> Lsn {
        match self {
            Self::Mark(mark) => mark.start,
            Self::Confirmed(_) => from,
        }
    }

    /// The last commit before the position.
    pub(crate) fn last(self) -> Option<Mark> {
        match self {
            Self::Mark(mark) => Some(mark),
            Self::Confirmed(mark) => mark,
        }
    }
}

/// The stream does not go on where the position is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its log does not have the commits that were applied, as after a restore from an older state")]
pub(crate) struct OtherHistory;

/// The commits of a stream, beginning with the mark of the position that it goes on from.
#[derive(Debug)]
pub(crate) struct History {
    timeline: u32,
    from: Lsn,
    last: Option<Mark>,
    /// The stream has to begin with it; `None` once it has.
    awaited: Option<Mark>,
}

impl History {
    /// Goes on from the position `from`.
    pub(crate) fn new(timeline: u32, from: Lsn, resume: Resume) -> Self {
        let awaited = match resume {
            Resume::Mark(mark) => Some(mark),
            Resume::Confirmed(_) => None,
        };
        Self { timeline, from, last: resume.last(), awaited }
    }

    /// A transaction comes whose commit record starts at `start`. Whether it is the mark, which was applied before.
    pub(crate) fn begins(&self, start: Lsn, xid: u32, time: i64) -> Result<bool, OtherHistory> {
        match self.awaited {
            Some(mark) if (mark.start, mark.xid, mark.time) == (start, xid, time) => Ok(true),
            Some(_) => Err(OtherHistory),
            // There was none between the mark and the position. Without a mark the server itself leaves out what is before the position.
            None if start < self.from => Err(OtherHistory),
            None => Ok(false),
        }
    }

    /// The mark has ended at `end`.
    pub(crate) fn continues(&mut self, end: Lsn) -> Result<(), OtherHistory> {
        match self.awaited.take() {
            Some(mark) if mark.end == end => Ok(()),
            Some(_) | None => Err(OtherHistory),
        }
    }

    /// All commits before `end` have come.
    pub(crate) fn passes(&self, end: Lsn) -> Result<(), OtherHistory> {
        match self.awaited {
            Some(mark) if mark.end <= end => Err(OtherHistory),
            Some(_) | None => Ok(()),
        }
    }

    /// Another transaction has ended.
    pub(crate) fn commits(&mut self, (start, end): (Lsn, Lsn), xid: u32, time: i64) -> Mark {
        let mark = Mark { timeline: self.timeline, start, end, xid, time };
        self.last = Some(mark);
        mark
    }

    /// Whether the stream has begun with the mark, if it had to.
    pub(crate) fn is_proven(&self) -> bool {
        self.awaited.is_none()
    }

    /// The last commit of all that were received, or applied before.
    pub(crate) fn last(&self) -> Option<Mark> {
        self.last
    }

    /// The last commit before `point`, if no later one was received: only then it belongs to the position `point`.
    pub(crate) fn last_before(&self, point: Lsn) -> Option<Mark> {
        self.last.filter(|mark| mark.end <= point)
    }
}

/// Where `timeline` ended, according to a history file: lines of a timeline, where it ended, and why.
pub(crate) fn switch_point(history: &[u8], timeline: u32) -> Option<Lsn> {
    let text = String::from_utf8_lossy(history);
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.parse() == Ok(timeline)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_from_its_token() {
        let mark = Mark { timeline: 3, start: Lsn(0x1_0000_00A0), end: Lsn(0x1_0000_00D0), xid: u32::MAX, time: -5 };
        assert_eq!(Mark::of(&mark.token()), Some(mark));
        for text in ["", "1", "1 0/1 0/2 3", "1 0/1 0/2 3 x"] {
            assert_eq!(Mark::of(&ResumeToken::new(text)), None, "{text}");
        }
        assert_eq!(Mark::of(&ResumeToken::default()), None);
    }

    fn mark(start: u64, end: u64) -> Mark {
        Mark { timeline: 1, start: Lsn(start), end: Lsn(end), xid: 7, time: 9 }
    }

    #[test]
    fn a_slot_that_let_go_of_something_is_no_way_to_go_on() {
        let of = |confirmed, mark| Resume::of(Lsn(confirmed), Lsn(30), mark);
        for confirmed in [1, 10] {
            assert_eq!(of(confirmed, Some(mark(10, 20))), Some(Resume::Mark(mark(10, 20))));
        }
        for confirmed in [20, 30] {
            assert_eq!(of(confirmed, Some(mark(10, 20))), Some(Resume::Confirmed(Some(mark(10, 20)))));
            assert_eq!(of(confirmed, None), Some(Resume::Confirmed(None)));
        }
        for confirmed in [11, 31] {
            assert_eq!(of(confirmed, Some(mark(10, 20))), None, "{confirmed}");
        }
        assert_eq!(of(31, None), None);
    }

    #[test]
    fn what_is_acknowledged_keeps_the_mark() {
        let position = Some(Position::Lsn(Lsn(30), mark(10, 20).token()));
        assert_eq!((acknowledged(&position, false), acknowledged(&position, true)), (Some(Lsn(10)), Some(Lsn(30))));
        assert_eq!(acknowledged(&Some(Lsn(30).into()), false), Some(Lsn(30)));
    }

    #[test]
    fn a_stream_that_begins_with_the_mark_goes_on() {
        let mut history = History::new(1, Lsn(30), Resume::Mark(mark(10, 20)));
        assert_eq!(history.passes(Lsn(19)), Ok(()));
        assert_eq!(history.begins(Lsn(10), 7, 9), Ok(true));
        assert_eq!(history.continues(Lsn(20)), Ok(()));
        assert_eq!(history.passes(Lsn(40)), Ok(()));
        assert_eq!(history.begins(Lsn(40), 8, 9), Ok(false));
        assert_eq!(history.commits((Lsn(40), Lsn(50)), 8, 9), Mark { xid: 8, ..mark(40, 50) });
        assert_eq!((history.last(), history.last_before(Lsn(45))), (Some(Mark { xid: 8, ..mark(40, 50) }), None));
    }

    #[test]
    fn any_other_beginning_is_another_history() {
        let history = || History::new(1, Lsn(30), Resume::Mark(mark(10, 20)));
        for (start, xid, time) in [(10, 8, 9), (10, 7, 8), (12, 7, 9), (40, 8, 9)] {
            assert_eq!(history().begins(Lsn(start), xid, time), Err(OtherHistory), "{start} {xid} {time}");
        }
        assert_eq!(history().passes(Lsn(20)), Err(OtherHistory), "the mark would have come");
        assert_eq!(history().continues(Lsn(21)), Err(OtherHistory));
        let mut after = history();
        assert_eq!(after.continues(Lsn(20)), Ok(()));
        assert_eq!(after.begins(Lsn(25), 8, 9), Err(OtherHistory), "nothing was there when the position was stored");
        assert_eq!(History::new(1, Lsn(30), Resume::Confirmed(None)).begins(Lsn(30), 8, 9), Ok(false));
    }

    #[test]
    fn the_history_tells_where_a_timeline_ended() {
        let history = b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000098\tbefore 2026-01-01\n";
        assert_eq!(switch_point(history, 1), Some(Lsn(0x300_0000)));
        assert_eq!(switch_point(history, 2), Some(Lsn(0x500_0098)));
        assert_eq!(switch_point(history, 3), None);
    }
}

//! The engine's one way in: an input and its moment, what is to happen out.
//!
//! Refuses to believe the records of the moment: they say when to look, and what happened between
//! two readings. What locks there are, and what they are in, only readings say.
//!
//! What it remembers is bounded by the newest reading, by the windows of time of [`Settings`], and
//! in each table by a fixed number of entries; what had to be forgotten is told as `lost`.

mod deadlocks;
mod evicted;
mod exit_races;
mod handoffs;
mod long_waits;
mod orphans;
mod reclaims;
mod recycled;
mod reorder;
mod replaced;
mod schedule;
mod telling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use deadlocks::Deadlocks;
use evicted::Evictions;
use exit_races::ExitRaces;
use handoffs::Handoffs;
use long_waits::LongWaits;
use orphans::Orphans;
use reclaims::Reclaims;
use recycled::Recycled;
use reorder::{Record, Reorder};
use replaced::Replaced;
use schedule::Schedule;
use telling::{News, Scene};

use super::event::{Kind, Party};
use super::identity::BootTime;
use super::input::{
    Acquired, Attempt, Ended, FileId, Input, Moment, Outcome, Output, Reading, Released, Settings,
    Watched,
};
use super::memory::Memory;
use super::snapshot::Snapshot;
use super::view::View;

pub use evicted::WATCHED_FOR;
pub use reorder::WINDOW as REORDER_WINDOW;

/// Events that wait for the path of their file at once.
const MOST_HELD: usize = 1 << 12;

/// The state between two inputs.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    /// The number of the last event.
    seq: u64,
    view: Arc<View>,
    /// When the reading of the view was begun.
    begun: BootTime,
    watched: BTreeMap<FileId, Watched>,
    schedule: Schedule,
    reorder: Reorder,
    orphans: Orphans,
    handoffs: Handoffs,
    exit_races: ExitRaces,
    recycled: Recycled,
    replaced: Replaced,
    deadlocks: Deadlocks,
    long_waits: LongWaits,
    reclaims: Reclaims,
    evictions: Evictions,
    /// What is wanted besides events and readings.
    wanted: Vec<Output>,
    /// What is not told yet, because the next reading may know the path.
    held: Vec<(BootTime, News)>,
    /// What the calendar's clock is ahead of the boot clock.
    shift: Option<u64>,
    /// Records that were lost, and when that was known.
    lost: Option<(u64, BootTime)>,
    /// What was asked for last. At first a daemon before may have asked for something else.
    attended: Option<Vec<FileId>>,
    /// Whether that may have changed.
    reconsider: bool,
}

impl Engine {
    /// An engine that has been told nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            seq: 0,
            view: nothing(),
            begun: BootTime(0),
            watched: BTreeMap::new(),
            schedule: Schedule::new(settings.gc_interval),
            reorder: Reorder::default(),
            orphans: Orphans::default(),
            handoffs: Handoffs::new(settings.handoff_window),
            exit_races: ExitRaces::default(),
            recycled: Recycled::default(),
            replaced: Replaced::default(),
            deadlocks: Deadlocks::default(),
            long_waits: LongWaits::default(),
            reclaims: Reclaims::new(settings.reclaim.clone()),
            evictions: Evictions::default(),
            wanted: Vec::new(),
            held: Vec::new(),
            shift: None,
            lost: None,
            attended: None,
            reconsider: true,
            settings,
        }
    }

    /// The newest view: the last reading, in which only confirmed orphans are called so.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// When [`Self::step`] should be called with a [`Input::Tick`] unless there is something else
    /// before.
    pub fn deadline(&self) -> Option<BootTime> {
        let due = self.schedule.deadline();
        Some(self.reorder.deadline().map_or(due, |record| record.min(due)))
    }

    /// True once what the first readings found was reclaimed, as far as that is wanted and allowed.
    pub fn is_swept(&self) -> bool {
        self.reclaims.is_swept()
    }

    /// How many entries it remembers besides the view. It stays below what the locks and waiters of
    /// the newest reading, the files that are watched, and fixed numbers add up to.
    pub fn remembered(&self) -> usize {
        self.watched.len()
            + self.schedule.remembered()
            + self.reorder.remembered()
            + self.orphans.remembered()
            + self.handoffs.remembered()
            + self.exit_races.remembered()
            + self.recycled.remembered()
            + self.replaced.remembered()
            + self.deadlocks.remembered()
            + self.long_waits.remembered()
            + self.reclaims.remembered()
            + self.evictions.remembered()
            + self.held.len()
            + self.attended.as_ref().map_or(0, Vec::len)
    }

    /// Takes one input in. Times that run backwards are no error, and nothing happens earlier for
    /// them.
    pub fn step(&mut self, now: Moment, input: Input) -> Vec<Output> {
        let now = self.steady(now);
        let mut news = Vec::new();
        self.settle(now.boot, &mut news);
        self.take(now.boot, input, &mut news);
        self.settle(now.boot, &mut news);
        self.handoffs.expire(now.boot);
        self.exit_races.expire(now.boot);
        self.reconsider |= self.evictions.expire(now.boot);
        let forgotten =
            self.handoffs.forgotten() + self.exit_races.forgotten() + self.recycled.forgotten();
        if forgotten > 0 {
            self.lose(forgotten, now.boot);
        }
        let mut outputs = Vec::new();
        for news in news {
            self.seq += 1;
            outputs.push(Output::Event(Box::new(news.numbered(self.seq, now))));
        }
        if std::mem::take(&mut self.reconsider) {
            let attended = self.attention();
            if self.attended.as_ref() != Some(&attended) {
                self.attended = Some(attended.clone());
                outputs.push(Output::Attend(attended));
            }
        }
        outputs.append(&mut self.wanted);
        if self.schedule.poll(now.boot) {
            outputs.push(Output::Read);
        }
        outputs
    }

    /// The moment by one relation of the two clocks, as long as they agree to a millisecond: the
    /// start of a process is to be the same in every event.
    fn steady(&mut self, now: Moment) -> Moment {
        const SLACK: u64 = 1_000_000;
        let shifted = now.unix.wrapping_sub(now.boot.0);
        let steady = self
            .shift
            .filter(|&shift| shifted.wrapping_sub(shift).min(shift.wrapping_sub(shifted)) < SLACK);
        let shift = *self.shift.insert(steady.unwrap_or(shifted));
        Moment { unix: now.boot.0.wrapping_add(shift), ..now }
    }

    /// Leaves a race of whose file the path is not known until the next reading, which may know it.
    fn hold_back(&mut self, races: Vec<News>, now: BootTime, news: &mut Vec<News>) {
        for race in races {
            if self.held.len() < MOST_HELD && race.wants_a_path() {
                self.schedule.at(now);
                self.held.push((now, race));
            } else {
                news.push(race);
            }
        }
    }

    /// Tells what waited for a reading that was begun at `begun`.
    fn let_go(&mut self, begun: BootTime) -> Vec<News> {
        let held = std::mem::take(&mut self.held).into_iter();
        let (due, wait): (Vec<_>, Vec<_>) = held.partition(|(at, _)| *at <= begun);
        self.held = wait;
        let scene = Scene { view: &self.view, watched: &self.watched };
        due.into_iter().map(|(_, news)| news.with_path(scene)).collect()
    }

    fn take(&mut self, now: BootTime, input: Input, news: &mut Vec<News>) {
        let record = match input {
            Input::Started(started) => {
                self.seq = started.last_seq.unwrap_or(0);
                self.schedule.at_once(now);
                started.told.into_iter().for_each(|memory| self.remember(memory));
                news.push(News::general(Kind::Started {
                    continued: started.continued,
                    last_seq: started.last_seq,
                    version: started.version,
                    kernel: started.kernel,
                }));
                return;
            }
            Input::Watch(watched) => return self.watch(watched, now),
            Input::Reading(reading) => return self.read(*reading, now, news),
            Input::Died(death) => {
                return self.schedule.at(death.at.min(now).after(self.settings.grace));
            }
            Input::Lost(records) => return self.lose(records, now),
            Input::Tick => return,
            Input::Reconcile => return self.schedule.at_once(now),
            Input::GcInterval(interval) => return self.schedule.reconcile_every(interval, now),
            Input::ReclaimEnabled(on) => return self.allow(on, now),
            Input::Planned(planned) => {
                let scene = Scene { view: &self.view, watched: &self.watched };
                return news.extend(self.reclaims.planned(planned, scene));
            }
            Input::Reclaimed(reclaimed) => {
                let scene = Scene { view: &self.view, watched: &self.watched };
                let by = reclaimed.by;
                let ended = self.reclaims.ended(reclaimed, now, &mut self.schedule, scene);
                for (about, evicted) in ended.released {
                    self.evictions.begin(by, &about, &evicted, now);
                    self.wanted.push(Output::WatchWrites(about.lock.file, evicted));
                    self.reconsider = true;
                }
                return news.extend(ended.news);
            }
            Input::PidReused(reused) => Record::PidReused(reused),
            Input::Ended(ended) => Record::Ended(ended),
            Input::Acquired(acquired) => Record::Acquired(acquired),
            Input::Released(released) => Record::Released(released),
            Input::Attempt(attempt) => Record::Attempt(attempt),
            Input::Wrote(wrote) => Record::Wrote(wrote),
        };
        self.reorder.take(now, record);
    }

    /// What a daemon before has told is not told again.
    fn remember(&mut self, memory: Memory) {
        match memory {
            Memory::Orphan { told, exiting } => self.orphans.remember(*told, exiting),
            Memory::Recycled { lock, process } => self.recycled.remember(lock, process),
            Memory::Replaced { old, new } => self.replaced.remember(old, new),
            Memory::Deadlock { members } => self.deadlocks.remember(members),
            Memory::LongWait { file, pid, since } => self.long_waits.remember(file, pid, since),
        }
        self.reconsider = true;
    }

    /// Takes the records for which it is time.
    fn settle(&mut self, now: BootTime, news: &mut Vec<News>) {
        while let Some(record) = self.reorder.next(now) {
            match record {
                Record::PidReused(reused) => {
                    self.recycled.reuse(reused, self.begun, &mut self.schedule);
                }
                Record::Ended(ended) => self.end(ended, now, news),
                Record::Acquired(acquired) => self.acquire(&acquired, now, news),
                Record::Released(released) => self.release(&released, news),
                Record::Attempt(attempt) => self.attempt(&attempt, now, news),
                Record::Wrote(wrote) => {
                    let scene = Scene { view: &self.view, watched: &self.watched };
                    news.extend(self.evictions.wrote(&wrote, scene));
                    self.reconsider = true;
                }
            }
        }
    }

    fn end(&mut self, ended: Ended, now: BootTime, news: &mut Vec<News>) {
        let scene = Scene { view: &self.view, watched: &self.watched };
        let mut races = self.recycled.end(&ended, scene);
        let outlived_owner = self.orphans.outlived_owner(ended.lock.id);
        self.reconsider |= self.orphans.contains(ended.lock.id);
        news.extend(self.orphans.end(&ended));
        races.extend(self.handoffs.acquire(&ended.taking(), now, scene));
        if !outlived_owner {
            races.extend(self.exit_races.end(&ended, scene));
            races.extend(self.handoffs.end(ended, scene));
        }
        self.hold_back(races, now, news);
    }

    fn acquire(&mut self, acquired: &Acquired, now: BootTime, news: &mut Vec<News>) {
        let scene = Scene { view: &self.view, watched: &self.watched };
        let races = self.handoffs.acquire(acquired, now, scene);
        self.reconsider |= self.evictions.acquire(acquired);
        if self.settings.verbose {
            let by = Party::from(&acquired.by);
            let told = scene.recorded(&acquired.lock, Some((&acquired.by, acquired.at)), None);
            news.push(News::of(told, Kind::Acquired { by, at: acquired.at }));
        }
        self.hold_back(races, now, news);
    }

    fn release(&mut self, released: &Released, news: &mut Vec<News>) {
        if self.settings.verbose {
            let scene = Scene { view: &self.view, watched: &self.watched };
            let by = Party::from(&released.by);
            let told = scene.recorded(&released.lock, None, None);
            news.push(News::of(told, Kind::Released { by, at: released.at }));
        }
    }

    fn attempt(&mut self, attempt: &Attempt, now: BootTime, news: &mut Vec<News>) {
        let mut races = Vec::new();
        let scene = Scene { view: &self.view, watched: &self.watched };
        let by = || Party::from(&attempt.by);
        let at = attempt.at;
        if !self.orphans.outlived_owner(attempt.met.id) {
            let grace = self.settings.grace;
            races.extend(self.exit_races.attempt(attempt, grace, &mut self.schedule, scene));
        }
        let told = || scene.recorded(&attempt.met, None, None);
        match attempt.outcome {
            Outcome::Refused => {
                if scene.is_watched(attempt.met.file) || self.orphans.contains(attempt.met.id) {
                    news.push(News::of(told(), Kind::Refused { by: by(), at }));
                }
            }
            Outcome::Blocked => {
                if self.settings.verbose {
                    news.push(News::of(told(), Kind::Blocked { by: by(), at }));
                }
            }
        }
        self.hold_back(races, now, news);
    }

    fn watch(&mut self, watched: Vec<Watched>, now: BootTime) {
        let with_file = watched.into_iter().filter_map(|watched| Some((watched.file?, watched)));
        let watched: BTreeMap<FileId, Watched> = with_file.collect();
        let is_locked = |file: &FileId| !self.view.on_file(file.dev, file.ino).is_empty();
        let left = self.watched.keys().filter(|file| !watched.contains_key(*file));
        // Another file where a locked one was: two may be locked at once.
        if left.into_iter().any(is_locked) {
            self.schedule.at_once(now);
        }
        self.watched = watched;
        self.reconsider = true;
    }

    fn read(&mut self, reading: Reading, now: BootTime, news: &mut Vec<News>) {
        let Reading { begun, snapshot, ids } = reading;
        let grace = self.settings.grace;
        self.schedule.read(begun, now);
        let overdue = Some(begun.before(grace));
        // Not two views at once, which may be large.
        self.view = nothing();
        let mut view = View::with_patience(snapshot, &ids, overdue);
        self.orphans.confirm(&mut view, begun, grace, &mut self.schedule);
        self.view = Arc::new(view);
        self.begun = begun;
        self.reconsider = true;
        news.extend(self.let_go(begun));
        let scene = Scene { view: &self.view, watched: &self.watched };
        if let Some((records, _)) = self.lost.take_if(|(_, at)| *at <= begun) {
            news.push(News::general(Kind::Lost { records }));
        }
        news.extend(self.orphans.announce(scene));
        news.extend(self.exit_races.read(begun, now, grace, scene));
        news.extend(self.recycled.read(begun, scene));
        news.extend(self.replaced.read(scene));
        news.extend(self.deadlocks.read(begun, grace, &mut self.schedule, scene));
        let threshold = self.settings.long_wait;
        news.extend(self.long_waits.read(begun, threshold, &mut self.schedule, scene));
        let suspects = self.orphans.suspects();
        let decision = self.reclaims.decide(begun, now, suspects, &mut self.schedule, scene);
        news.extend(decision.news);
        self.wanted.extend(decision.orders.into_iter().map(Output::Reclaim));
        if decision.suspended {
            self.wanted.push(Output::SwitchedOff);
        }
    }

    fn allow(&mut self, on: bool, now: BootTime) {
        self.reclaims.switch(on);
        if on {
            self.schedule.at_once(now);
        } else {
            self.wanted.push(Output::StopReclaims);
        }
    }

    fn lose(&mut self, records: u64, now: BootTime) {
        let before = self.lost.map_or(0, |(records, _)| records);
        self.lost = Some((before.saturating_add(records), now));
        self.evictions.lose();
        self.schedule.at_once(now);
    }

    /// The files whose every lock and attempt matters: those that are watched, and those of orphans.
    /// To the file of a crash the kernel pays attention by itself for the window: nobody else could
    /// be quick enough.
    fn attention(&self) -> Vec<FileId> {
        let mut files: BTreeSet<FileId> = self.watched.keys().copied().collect();
        files.extend(self.orphans.files());
        files.extend(self.evictions.files());
        files.into_iter().collect()
    }
}

fn nothing() -> Arc<View> {
    Arc::new(View::new(Snapshot::default(), &[]))
}

#[cfg(test)]
pub(crate) mod tests;

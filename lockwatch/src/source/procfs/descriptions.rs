//! Which descriptors are one open file description, which tasks share one fd table, and so which
//! lock of the listing belongs to whom.
//!
//! Refuses to guess: what neither the counts nor the kernel can settle has no owner.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::io;

use super::locks_line::Body;
use super::order;
use super::root::Lookups;
use super::table::Listed;
use super::tasks::{ProcessScan, is_gone};
use crate::engine::identity::{LockKind, Owner, Pid};

/// A descriptor with locks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub pid: Pid,
    pub tid: Pid,
    pub fd: u32,
    pub flags: Option<u32>,
    pub body: Body,
    /// The description, where it could be told from others.
    pub description: Option<Owner>,
    /// The fd table.
    pub files: Owner,
    table: usize,
    gone: bool,
}

/// Locks of equal looks, and the descriptors that show them.
#[derive(Debug)]
pub(super) struct Group {
    pub body: Body,
    /// Indices of the listing.
    pub listed: Vec<usize>,
    /// Indices of [`Grouped::held`].
    pub held: Vec<usize>,
    /// The owners, each of one lock; `None` where they could not be told apart.
    pub owners: Option<Vec<Owner>>,
}

/// Everything, sorted out.
#[derive(Debug, Default)]
pub(super) struct Grouped {
    pub held: Vec<Held>,
    pub groups: Vec<Group>,
    /// True where the kernel did not say which descriptors are one description.
    pub undecided: bool,
}

/// From this many equal locks on, as many descriptors as locks count as one description each
/// without asking: to ask would cost more than all the rest.
const COUNTED: usize = 4096;
/// How often a comparison is begun anew because a process ended under it.
const ATTEMPTS: usize = 3;

/// Sorts out what the pass and the listing found.
pub(super) fn group(
    scans: &BTreeMap<Pid, ProcessScan>,
    listed: &[Listed],
    lookups: &dyn Lookups,
) -> Grouped {
    let mut grouped = Grouped::default();
    let mut index: HashMap<Body, usize> = HashMap::with_capacity(listed.len());
    let mut group_of = |groups: &mut Vec<Group>, body: Body| {
        *index.entry(body).or_insert_with(|| {
            groups.push(Group { body, listed: Vec::new(), held: Vec::new(), owners: None });
            groups.len() - 1
        })
    };
    for (at, lock) in listed.iter().enumerate() {
        let group = group_of(&mut grouped.groups, lock.body);
        grouped.groups[group].listed.push(at);
    }
    let mut tasks = Vec::new();
    for (&pid, scan) in scans {
        for table in &scan.tables {
            for descriptor in &table.descriptors {
                let mut held = None;
                for line in descriptor.info.locks.iter().filter(|line| line.body.inode.is_some()) {
                    let held = *held.get_or_insert_with(|| {
                        grouped.held.push(Held {
                            pid,
                            tid: table.tid,
                            fd: descriptor.fd,
                            flags: descriptor.info.flags,
                            body: line.body,
                            description: None,
                            files: Owner::new(0),
                            table: tasks.len(),
                            gone: false,
                        });
                        grouped.held.len() - 1
                    });
                    let group = group_of(&mut grouped.groups, line.body);
                    grouped.groups[group].held.push(held);
                }
            }
            tasks.push(table.tid);
        }
    }
    let tables = settle_tables(&mut grouped, &tasks, lookups);
    settle_descriptions(&mut grouped, tables, lookups);
    grouped
}

/// Finds tasks of one fd table by the POSIX locks that both show.
fn settle_tables(grouped: &mut Grouped, tasks: &[Pid], lookups: &dyn Lookups) -> Classes {
    let mut tables = Classes::new(tasks.len());
    for group in grouped.groups.iter_mut().filter(|group| group.body.kind == LockKind::Posix) {
        let mut sharers: Vec<usize> = group.held.iter().map(|&at| grouped.held[at].table).collect();
        sharers.sort_unstable();
        sharers.dedup();
        let counted = group.listed.len() == sharers.len();
        let mut decided = true;
        if group.listed.len() == 1 {
            sharers.windows(2).for_each(|pair| tables.unite(pair[0], pair[1]));
        } else if sharers.len() > 1 {
            let compare = |l: usize, r: usize| lookups.compare_tables(tasks[l], tasks[r]);
            let equal = |l, r| tables.unite(l, r);
            decided = settle(&mut sharers, compare, equal, |_| ()).is_ok() || counted;
        }
        grouped.undecided |= !decided;
        group.owners = decided.then(|| {
            let mut owners: Vec<_> = sharers.iter().map(|&at| tables.find(at)).collect();
            owners.sort_unstable();
            owners.dedup();
            owners.into_iter().map(table_token).collect()
        });
    }
    for held in &mut grouped.held {
        held.files = table_token(tables.find(held.table));
    }
    tables
}

fn settle_descriptions(grouped: &mut Grouped, mut tables: Classes, lookups: &dyn Lookups) {
    let mut classes = Classes::new(grouped.held.len());
    let held = &mut grouped.held;

    // The same number in the same table, seen through two tasks.
    let mut seen = HashMap::new();
    for (at, one) in held.iter().enumerate() {
        let table = tables.find(one.table);
        if tables.is_shared(table) {
            classes.unite(at, *seen.entry((table, one.fd)).or_insert(at));
        }
    }

    // To ask about a descriptor once, however many ranges its description has locked.
    let mut doubtful: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for group in &grouped.groups {
        if group.body.kind == LockKind::Posix {
            // A POSIX lock is shown with the one description through which it was taken.
            let mut first = HashMap::new();
            for &at in &group.held {
                let table = tables.find(held[at].table);
                classes.unite(at, *first.entry(table).or_insert(at));
            }
        } else if group.listed.len() == 1 {
            group.held.windows(2).for_each(|pair| classes.unite(pair[0], pair[1]));
        } else if group.held.len() > 1 && !is_counted(group) {
            doubtful.entry(group.body.inode).or_default().extend(&group.held);
        }
    }
    let mut unsettled = vec![false; held.len()];
    for mut asked in doubtful.into_values() {
        asked.sort_unstable();
        asked.dedup();
        let mut gone = Vec::new();
        let place = |at: usize| (held[at].tid, held[at].fd);
        let compare = |l, r| lookups.compare_descriptions(place(l), place(r));
        let everyone = asked.clone();
        if settle(&mut asked, compare, |l, r| classes.unite(l, r), |at| gone.push(at)).is_err() {
            everyone.into_iter().for_each(|at| unsettled[at] = true);
        }
        gone.into_iter().for_each(|at| held[at].gone = true);
    }

    for group in &mut grouped.groups {
        group.held.retain(|&at| !held[at].gone);
        if group.body.kind != LockKind::Posix {
            let settled = group.held.len() < 2
                || group.listed.len() == 1
                || group.listed.len() == group.held.len()
                || !group.held.iter().any(|&at| unsettled[at]);
            grouped.undecided |= !settled;
            group.owners = settled.then(|| {
                let mut owners: Vec<_> = group.held.iter().map(|&at| classes.find(at)).collect();
                owners.sort_unstable();
                owners.dedup();
                owners.into_iter().map(description_token).collect()
            });
        }
        if group.owners.is_some() {
            for &at in &group.held {
                held[at].description = Some(description_token(classes.find(at)));
            }
        }
    }
}

fn is_counted(group: &Group) -> bool {
    group.held.len() >= COUNTED && group.listed.len() == group.held.len()
}

/// Unites what compares as equal. What is gone meanwhile is handed to `gone` and taken out.
fn settle(
    items: &mut Vec<usize>,
    compare: impl Fn(usize, usize) -> io::Result<Ordering> + Sync,
    mut equal: impl FnMut(usize, usize),
    mut gone: impl FnMut(usize),
) -> io::Result<()> {
    for attempt in 1.. {
        match order::pair_up(items, &compare, &mut equal) {
            Err(error) if is_gone(&error) && attempt < ATTEMPTS => {}
            result => return result,
        }
        items.retain(|&item| {
            let left = !matches!(compare(item, item), Err(error) if is_gone(&error));
            if !left {
                gone(item);
            }
            left
        });
    }
    Ok(())
}

/// Tokens of descriptions are odd, those of tables even, so that none means both.
fn description_token(class: usize) -> Owner {
    Owner::new(class as u64 * 2 + 1)
}

fn table_token(class: usize) -> Owner {
    Owner::new(class as u64 * 2 + 2)
}

/// Sets of numbers that have been found to mean the same.
struct Classes {
    parent: Vec<usize>,
    shared: Vec<bool>,
}

impl Classes {
    fn new(count: usize) -> Self {
        Self { parent: (0..count).collect(), shared: vec![false; count] }
    }

    fn find(&mut self, mut at: usize) -> usize {
        while self.parent[at] != at {
            self.parent[at] = self.parent[self.parent[at]];
            at = self.parent[at];
        }
        at
    }

    /// The smallest number stays the name of the set, which keeps the tokens reproducible.
    fn unite(&mut self, left: usize, right: usize) {
        let (left, right) = (self.find(left), self.find(right));
        if left != right {
            let (low, high) = (left.min(right), left.max(right));
            self.parent[high] = low;
            self.shared[low] = true;
        }
    }

    /// True where the set named `class` has more than one member.
    fn is_shared(&self, class: usize) -> bool {
        self.shared[class]
    }
}

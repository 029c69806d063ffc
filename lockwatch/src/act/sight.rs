//! How the actuator sees the kernel's tables: through whoever reads them for it.

use crate::engine::identity::Owner;
use crate::engine::view::View;

/// One reading.
pub struct Sighting {
    /// What the engine makes of it, with this process's own descriptors left out: what was fetched
    /// for a plan must not count as a holder.
    pub view: View,
    /// This process's own descriptors of locked files, with the description behind each.
    pub own: Vec<(u32, Owner)>,
}

impl Sighting {
    /// The description behind a descriptor of our own.
    pub fn own(&self, number: u32) -> Option<Owner> {
        self.own.iter().find(|(fd, _)| *fd == number).map(|(_, owner)| *owner)
    }
}

/// Reads the tables anew.
pub trait Sight {
    /// One reading, begun after the call; a thorough one also searches what no fd table shows.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn look(&mut self, thorough: bool) -> anyhow::Result<Sighting>;
}

//! Bugs planted on purpose, so that the simulator can prove that it would find them. Nothing but the simulator and
//! tests ever sets one; the default is [`Planted::Nothing`].

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Planted {
    /// Every rule holds.
    #[default]
    Nothing,
    /// I1: a write is acknowledged as soon as one member has it.
    AckByFirst,
    /// I2: a write is acknowledged before the store knows that a member missed it.
    AckBeforeStale,
    /// I3: members obey an owner whose epoch is over.
    NoFence,
    /// I4: when no member in sync is reachable, a stale one is taken instead.
    StaleTakesOver,
    /// I6: after an unclean end the members are taken to be equal.
    NoResync,
    /// I7: a rebuilt member joins the writes only after it was given what it is owed.
    LateJoin,
    /// I11: overlapping operations run side by side.
    NoOrder,
    /// I12: the record of the store is taken to be the latest.
    TrustsStore,
}

impl Planted {
    /// Every planted bug of the nexus, with the name that the command line knows.
    pub const ALL: [(&'static str, Self); 8] = [
        ("I1", Self::AckByFirst),
        ("I2", Self::AckBeforeStale),
        ("I3", Self::NoFence),
        ("I4", Self::StaleTakesOver),
        ("I6", Self::NoResync),
        ("I7", Self::LateJoin),
        ("I11", Self::NoOrder),
        ("I12", Self::TrustsStore),
    ];
}

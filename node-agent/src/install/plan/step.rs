//! What a plan is made of.

/// Why a file is written or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The copy of a file as it was without us.
    Backup,
    /// Our entry was not there.
    Missing,
    /// Our entry was not the last one.
    NotLast,
    /// There were several entries of ours.
    Duplicate,
    /// Our entry said something else.
    Different,
    /// A single plugin became a list.
    Converted,
    /// Our list followed the primary.
    Followed,
    /// What we left behind in another placement.
    LeftOver,
    /// Back to what it was without us.
    Restored,
}

impl Change {
    /// Name for logs and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Missing => "missing",
            Self::NotLast => "not_last",
            Self::Duplicate => "duplicate",
            Self::Different => "different",
            Self::Converted => "converted",
            Self::Followed => "followed",
            Self::LeftOver => "left_over",
            Self::Restored => "restored",
        }
    }
}

/// One atomic step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replace or make a file, whole.
    Write {
        /// Its name.
        file: String,
        /// What will be in it.
        bytes: Vec<u8>,
        /// Whose mode and owner it gets; a new file's own defaults otherwise.
        like: Option<String>,
        /// Why.
        change: Change,
    },
    /// Remove a file.
    Remove {
        /// Its name.
        file: String,
        /// Why.
        change: Change,
    },
}

impl Step {
    /// Why.
    pub const fn change(&self) -> Change {
        let (Self::Write { change, .. } | Self::Remove { change, .. }) = self;
        *change
    }

    /// On which file.
    pub fn file(&self) -> &str {
        let (Self::Write { file, .. } | Self::Remove { file, .. }) = self;
        file
    }
}

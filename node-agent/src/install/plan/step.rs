//! Steps of a plan.

/// Reason for which a file is written or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeReason {
    /// A backup of the file without our entry.
    Backup,
    /// Our entry was missing.
    Missing,
    /// Our entry was not the last one.
    NotLast,
    /// There were several entries.
    Duplicate,
    /// Our entry was another one.
    Different,
    /// A single plugin was converted to a list.
    Converted,
    /// The primary of our own list changed.
    Followed,
    /// A leftover of another placement.
    LeftOver,
    /// Restored without our entry.
    Restored,
}

impl ChangeReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Backup,
        Self::Missing,
        Self::NotLast,
        Self::Duplicate,
        Self::Different,
        Self::Converted,
        Self::Followed,
        Self::LeftOver,
        Self::Restored,
    ];

    /// Returns the name used in logs and metrics.
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
pub enum FileStep {
    /// Replaces or creates a file.
    Write {
        /// Its name.
        file: String,
        /// Its content.
        bytes: Vec<u8>,
        /// File whose mode and owner it gets; `None` gives the defaults of a new file.
        like: Option<String>,
        /// Reason for the change.
        reason: ChangeReason,
    },
    /// Removes a file.
    Remove {
        /// Its name.
        file: String,
        /// Reason for the change.
        reason: ChangeReason,
    },
}

impl FileStep {
    /// Returns why the file is changed.
    pub const fn reason(&self) -> ChangeReason {
        let (Self::Write { reason, .. } | Self::Remove { reason, .. }) = self;
        *reason
    }

    /// Returns the name of the file.
    pub fn file(&self) -> &str {
        let (Self::Write { file, .. } | Self::Remove { file, .. }) = self;
        file
    }
}

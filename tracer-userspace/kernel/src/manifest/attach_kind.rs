//! The kinds of programs.

/// How a program attaches to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttachKind {
    RawTracepoint,
    Fentry,
    /// A kprobe on the part of a function that the compiler split off (`<function>.part.0`).
    KprobePart0,
    Kprobe,
    Kretprobe,
}

impl AttachKind {
    pub(super) const ALL: [Self; 5] =
        [Self::RawTracepoint, Self::Fentry, Self::KprobePart0, Self::Kprobe, Self::Kretprobe];

    /// The name, as it stands at the end of a program's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RawTracepoint => "rawtp",
            Self::Fentry => "fentry",
            Self::KprobePart0 => "kprobe_part0",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.as_str() == name)
    }

    /// Whether it needs kprobes on this kernel.
    pub fn is_kprobe(self) -> bool {
        matches!(self, Self::KprobePart0 | Self::Kprobe | Self::Kretprobe)
    }

    /// Section types from which aya makes this kind of program.
    pub(super) fn section_types(self) -> &'static [&'static str] {
        match self {
            Self::RawTracepoint => &["raw_tp", "raw_tracepoint"],
            Self::Fentry => &["fentry"],
            Self::KprobePart0 | Self::Kprobe => &["kprobe"],
            Self::Kretprobe => &["kretprobe"],
        }
    }
}

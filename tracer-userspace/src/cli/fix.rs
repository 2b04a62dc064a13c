//! The options of `fix`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, ValueEnum, builder::PossibleValue};
use rsttrace_core::fix::Client;

use super::{PageArgs, help::FIX_NOTES, parse_duration};
use crate::filter::{parse_cause, parse_netns};

/// Well-known advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// "Resolving DB Connection Error (ECONNRESET) Issues": nf_conntrack_max=131072, ipvsadm --set 7200
    /// 120 300, keepalive 7200/75/5, …
    Article,
}

/// [`Client`] as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct For(pub Client);

impl ValueEnum for For {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: [For; Client::ALL.len()] = {
            let mut all = [For(Client::Mysql2); Client::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = For(Client::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.id()).help(self.0.title()))
    }
}

/// Plan what ends a cause on this host: commands, files, and how to take it back
///
/// For a cause, or for an incident that `live -o json` printed, tells what to change, best first: the
/// exact commands with the network namespace they belong in, what keeps them over a reboot, the form for
/// Kubernetes, what is risky, what the change does not do, how to verify it and how to take it back. Values
/// are computed from this host as it is; an incident only says which cause and which connection.
///
/// Nothing is changed without --apply, which applies one fix that is the node's own. It keeps the old
/// values and files first, verifies each value by reading it back, and restores everything if one step
/// fails. Applying the same again changes nothing.
#[derive(Args, Debug)]
#[command(
    after_long_help = FIX_NOTES,
    group = ArgGroup::new("what").required(true).args(["cause", "from", "check", "profile", "undo", "list"]),
)]
pub struct FixArgs {
    /// The cause to end, by its id
    #[arg(value_parser = parse_cause)]
    pub cause: Option<String>,

    /// Read incidents from this file (- is standard input), as `live -o json` prints them; the newest
    /// one counts
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    /// Of the incidents of --from, the one with this event_id
    #[arg(long, value_name = "ID", requires = "from")]
    pub event: Option<String>,

    /// The fixes of everything that `check` finds on this host, worst first
    #[arg(long)]
    pub check: bool,

    /// Instead of a cause, well-known advice line by line, with what we think of it
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub profile: Option<Profile>,

    /// Change only this network namespace: inode number, name, or path
    #[arg(long, value_name = "NETNS", value_parser = parse_netns)]
    pub netns: Option<u32>,

    /// The longest silence that a connection has to survive: 30m, 2h; otherwise twice the limit of now
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub idle: Option<Duration>,

    /// Only the fix with this id
    #[arg(long, value_name = "FIX")]
    pub choose: Option<String>,

    /// Also print the lines for this client or proxy
    #[arg(long = "for", value_enum, value_name = "CLIENT")]
    pub client: Option<For>,

    /// Apply the first fix that is the node's to make, or the one of --choose
    #[arg(long, help_heading = "Changing the host", conflicts_with_all = ["undo", "list", "profile"])]
    pub apply: bool,

    /// Do not ask
    #[arg(short, long, help_heading = "Changing the host", requires = "apply")]
    pub yes: bool,

    /// Take back what was applied: the newest, or the one with this id
    #[arg(
        long,
        value_name = "ID",
        num_args = 0..=1,
        default_missing_value = "newest",
        help_heading = "Changing the host"
    )]
    pub undo: Option<String>,

    /// Apply once more what is in force already; take back values that somebody else has changed since
    #[arg(long, help_heading = "Changing the host")]
    pub force: bool,

    /// List what was applied and can be taken back
    #[arg(long, help_heading = "Changing the host")]
    pub list: bool,

    /// Where old values and files are kept
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/rsttrace",
        help_heading = "Changing the host"
    )]
    pub state_dir: PathBuf,

    #[command(flatten)]
    pub page: PageArgs,
}

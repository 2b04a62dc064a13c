//! The arguments of `fix`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, ValueEnum, builder::PossibleValue};
use rsttrace_core::fix::Client;

use super::{PageArgs, help::FIX_NOTES, parse_duration};
use crate::filter::{parse_cause, parse_netns};

/// Well-known advice that can be reviewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// "Resolving DB Connection Error (ECONNRESET) Issues": nf_conntrack_max=131072, ipvsadm --set 7200
    /// 120 300, keepalive 7200/75/5, …
    Article,
}

/// [`Client`] as the value of an option.
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

/// Plan the fixes of a cause on this host: commands, files, and how to undo them
///
/// For a cause, or for an incident that `live -o json` printed, shows what to change, best fix first: the
/// exact commands with their network namespace, how to persist them across a reboot, the form for
/// Kubernetes, the risk, what the change does not do, how to verify it and how to undo it. Values are
/// computed from the current state of this host; an incident only selects the cause and the connection.
///
/// Nothing is changed without --apply, which applies one node-level fix. It first saves the old values and
/// files, verifies each new value by reading it back, and restores everything if a step fails. Applying the
/// same fix again changes nothing.
#[derive(Args, Debug)]
#[command(
    after_long_help = FIX_NOTES,
    group = ArgGroup::new("what").required(true).args(["cause", "from", "check", "profile", "undo", "list"]),
)]
pub struct FixArgs {
    /// The id of the cause to fix
    #[arg(value_parser = parse_cause)]
    pub cause: Option<String>,

    /// Read incidents from this file (- is standard input), as `live -o json` prints them, and use the
    /// newest one
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    /// Use the incident with this event_id from the file of --from
    #[arg(long, value_name = "ID", requires = "from")]
    pub event: Option<String>,

    /// Plan the fixes of all findings of `check` on this host, worst first
    #[arg(long)]
    pub check: bool,

    /// Review well-known advice line by line, instead of a cause
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub profile: Option<Profile>,

    /// Change only this network namespace: inode number, name, or path
    #[arg(long, value_name = "NETNS", value_parser = parse_netns)]
    pub netns: Option<u32>,

    /// The longest idle time that a connection must survive: 30m, 2h [default: twice the current limit]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub idle: Option<Duration>,

    /// Only the fix with this id
    #[arg(long, value_name = "FIX")]
    pub choose: Option<String>,

    /// Also print the settings for this client or proxy
    #[arg(long = "for", value_enum, value_name = "CLIENT")]
    pub client: Option<For>,

    /// Apply the first node-level fix, or the one given with --choose
    #[arg(long, help_heading = "Changing the host", conflicts_with_all = ["undo", "list", "profile"])]
    pub apply: bool,

    /// Apply without a prompt
    #[arg(short, long, help_heading = "Changing the host", requires = "apply")]
    pub yes: bool,

    /// Undo the newest applied fix, or the one with this undo id
    #[arg(
        long,
        value_name = "ID",
        num_args = 0..=1,
        default_missing_value = "newest",
        help_heading = "Changing the host"
    )]
    pub undo: Option<String>,

    /// With --apply, apply a fix that is already applied again; with --undo, also undo values that were
    /// changed by something else since
    #[arg(long, help_heading = "Changing the host")]
    pub force: bool,

    /// List the applied fixes that can be undone
    #[arg(long, help_heading = "Changing the host")]
    pub list: bool,

    /// Directory for the old values and files
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

//! The closing parts of `--help`.

use crate::render::explain;

const LIVE_NOTES: &str = "\
Examples:
  rsttrace live
          Explain every reset on this host until Ctrl-C.
  rsttrace live --port 3306 --count 1
          Wait for the next broken database connection and explain it.
  rsttrace live -o json | tee -a resets.ndjson
          One JSON event a line, with ECS field names, for Loki or OpenSearch.
  rsttrace live --duration 10m --fail-on timeout_mismatch
          For a script: exit code 5 if an idle timeout broke a connection.

Signals:
  SIGINT and SIGTERM end it in good order, with the summary and exit code 0.
  When standard output is closed it ends quietly.

Exit status:
  0  fine                         3  not permitted; what is missing is named
  1  internal failure             4  this kernel cannot; what is missing is named
  2  usage                        5  what --fail-on asked for was seen";

/// Terminals are at least this broad; the help is broken for it here, because clap knows no hanging
/// indents.
const WIDTH: usize = 80;

/// The closing part of `live --help`; its list of causes comes from the causes.
pub fn live_notes() -> String {
    format!("Causes, by family:\n\n{}\n{LIVE_NOTES}", explain::list(false, WIDTH))
}

pub const CHECK_NOTES: &str = "\
Examples:
  rsttrace check
          What would break on this host, in all its network namespaces.
  rsttrace check --netns web,db -o wide
          Two of them, with the commands of every fix.
  rsttrace check --path 'shop/orders-api→10.96.12.8:3306' --assume lb=350
          Every idle limit between a pod and a service, with one that only you know.
  rsttrace check -o json | jq 'select(.rank == \"break\")'
          One JSON object for each finding, and a summary last.
  rsttrace check --fail-on break
          For a script: exit code 5 if something will break.

Exit status:
  0  fine, whatever was found     2  usage
  1  internal failure             5  what --fail-on asked for was found";

pub const FIX_NOTES: &str = "\
Examples:
  rsttrace fix ipvs_idle_expired --idle 2h
          The plan for connections that are silent for two hours.
  rsttrace live -o json --count 1 | rsttrace fix --from -
          The plan for the next connection that breaks.
  rsttrace fix --check
          The plans for everything that check finds, before it breaks.
  rsttrace fix conntrack_table_full --apply
          Shows the first fix that is the node's, asks, applies it and keeps the old values.
  rsttrace fix --undo
          Takes the newest one back.

Files:
  /var/lib/rsttrace/undo/ID.json     old values and files, for root only
  /etc/sysctl.d/99-rsttrace-FIX.conf, and of the same name below /etc/modprobe.d,
  /etc/modules-load.d and /etc/systemd/system: what keeps a fix over a reboot

Containers:
  In a container --apply sets the values and writes no file, and says so: its /etc is not the host's.
  To keep a fix over a reboot, run it on the host, or put the files of the plan there.

Exit status:
  0  printed, applied, undone, or so already
  1  not applied, and everything is as before; or not wholly undone; what is left is named
  2  usage; --apply where nothing is the node's to change, or where nobody can be asked
  3  not permitted: --apply and --undo need root";

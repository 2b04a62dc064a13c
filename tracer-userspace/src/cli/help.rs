//! The closing sections of `--help`.

use crate::render::explain;

const LIVE_NOTES: &str = "\
Examples:
  rsttrace live
          Explain every reset on this host until Ctrl-C.
  rsttrace live --port 3306 --count 1
          Wait for the next broken database connection and explain it.
  rsttrace live -o json | tee -a resets.ndjson
          One JSON event per line with ECS field names, for Loki or OpenSearch.
  rsttrace live --duration 10m --fail-on timeout_mismatch
          For a script: exit code 5 if an idle timeout broke a connection.

Signals:
  SIGINT and SIGTERM shut down cleanly, with the summary and exit code 0.
  When the reader of standard output exits, rsttrace stops without an error.

Exit status:
  0  success
  1  internal error
  2  usage error
  3  not permitted; the message names what is missing
  4  kernel not supported; the message names what is missing
  5  --fail-on matched";

/// Columns that every terminal has. The list is wrapped here because clap has no hanging indents.
const WIDTH: usize = 80;

/// The closing section of `live --help`, with the list of all causes.
pub fn live_notes() -> String {
    format!("Causes, by family:\n\n{}\n{LIVE_NOTES}", explain::list(false, WIDTH))
}

pub const CHECK_NOTES: &str = "\
Examples:
  rsttrace check
          What will break on this host, in all its network namespaces.
  rsttrace check --netns web,db -o wide
          Only two network namespaces, with the commands of every fix.
  rsttrace check --path 'shop/orders-api→10.96.12.8:3306' --assume lb=350
          Every idle limit between a pod and a service, and the one of a load balancer.
  rsttrace check -o json | jq 'select(.rank == \"break\")'
          One JSON object per finding, and a summary at the end.
  rsttrace check --fail-on break
          For a script: exit code 5 if a connection will break.

Exit status:
  0  success, with or without findings
  1  internal error
  2  usage error
  5  --fail-on matched";

pub const FIX_NOTES: &str = "\
Examples:
  rsttrace fix ipvs_idle_expired --idle 2h
          The plan for connections that are idle for up to two hours.
  rsttrace live -o json --count 1 | rsttrace fix --from -
          The plan for the next connection that breaks.
  rsttrace fix --check
          The plans for all findings of check, before a connection breaks.
  rsttrace fix conntrack_table_full --apply
          Show the first node-level fix, prompt, save the old values and apply it.
  rsttrace fix --undo
          Undo the newest applied fix.

Files:
  /var/lib/rsttrace/undo/ID.json
          Old values and files, readable by root only.
  /etc/sysctl.d/99-rsttrace-FIX.conf
          Persists a fix across a reboot; also files of this name in /etc/modprobe.d,
          /etc/modules-load.d and /etc/systemd/system.

Containers:
  In a container, --apply sets the values but writes no file, because the container's /etc is not
  the host's, and prints a notice. To persist a fix across a reboot, run rsttrace on the host, or
  copy the files of the plan to the host.

Exit status:
  0  plan printed, fix applied, already applied, or undone
  1  not applied, and everything restored; or not completely undone, and the rest is named
  2  usage error; --apply without a node-level fix, or without --yes where no prompt is possible
  3  not permitted: --apply and --undo need root";

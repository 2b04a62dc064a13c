//! Options that are each valid but contradict each other.

use clap::{CommandFactory as _, error::ErrorKind};

use super::{Cli, Command, ShowArgs};

impl Cli {
    /// Checks the options against each other.
    ///
    /// # Errors
    /// A usage error that names the options.
    pub fn validate(self) -> Result<Self, clap::Error> {
        let show = match &self.command {
            Command::Live(args) => &args.show,
            Command::Replay(args) => &args.show,
            _ => return Ok(self),
        };
        if let Err(error) = show.expression() {
            let message = format!("cannot parse filter: {error}");
            return Err(Self::command().error(ErrorKind::ValueValidation, message));
        }
        match contradiction(show) {
            Some(message) => Err(Self::command().error(ErrorKind::ArgumentConflict, message)),
            None => Ok(self),
        }
    }
}

/// Why no incident can ever match the options; `None` if one can.
fn contradiction(args: &ShowArgs) -> Option<String> {
    let filter = args.filter();
    if !filter.can_match_a_cause() {
        return Some("no cause in --cause belongs to a family in --family".into());
    }
    if !filter.can_match_addresses() {
        return Some("--src and --dst have different address families".into());
    }
    let wanted = args.fail_on.as_ref()?;
    (!filter.lets_through(wanted))
        .then(|| "--fail-on can never match: --cause and --family filter it out".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["rsttrace", "live"].iter().chain(args)).and_then(Cli::validate)
    }

    #[test]
    fn filters_that_exclude_each_other_are_usage_errors() {
        for args in [
            &["--cause", "linger_zero", "--family", "remote,capacity"][..],
            &["--src", "10.0.0.1", "--dst", "fd00::1"],
            &["--cause", "linger_zero", "--fail-on", "timeout_mismatch"],
            &["--family", "benign", "--fail-on", "any"],
            &["host", "10.0.0.1", "and"],
            &["port 0"],
        ] {
            assert_eq!(parse(args).expect_err("a usage error").exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn filters_that_can_match_together_are_accepted() {
        for args in [
            &["--cause", "linger_zero,peer_aborted", "--family", "remote"][..],
            &["--src", "10.0.0.1", "--src", "fd00::1", "--dst", "fd00::2"],
            &["--cause", "linger_zero", "--fail-on", "application"],
            &["--port", "3306", "--fail-on", "any"],
            &["--cidr", "10.0.0.0/8", "host", "10.0.0.1", "and", "port", "3306"],
            &["host 10.0.0.1 and (port 3306 or port 5432)"],
        ] {
            assert!(parse(args).is_ok(), "{args:?}");
        }
    }
}

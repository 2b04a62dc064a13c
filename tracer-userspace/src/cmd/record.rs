//! `rsttrace record FILE`: traces, and keeps the stream instead of printing verdicts.

use std::{fs::File, io::BufWriter, path::Path};

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};

use super::{
    Exit, Failure,
    stream::{Observer, Turn, trace},
};
use crate::{
    capture::Writer,
    cli::RecordArgs,
    event::Event,
    out::{Summary, summary_text},
};

/// Records until a signal or the duration ends it.
///
/// # Errors
/// [`Failure`] when the file exists or cannot be written, or when tracing cannot start.
pub fn run(args: &RecordArgs) -> Result<Exit, Failure> {
    let file = create(&args.file)?;
    let writer = Writer::new(BufWriter::new(file)).context("cannot write the capture")?;
    let mut recorder = Recorder { writer, summary: Summary::default() };
    trace(&args.trace, &mut recorder)?;
    recorder.writer.flush().context("cannot write the capture")?;
    eprintln!("{}", summary_text(&recorder.summary));
    Ok(Exit::Fine)
}

/// Addresses and process names are nobody else's business, and a link must not lead the write elsewhere.
fn create(path: &Path) -> anyhow::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from).with_context(|| {
        format!("cannot create {} (an existing file is never overwritten)", path.display())
    })
}

struct Recorder {
    writer: Writer<BufWriter<File>>,
    summary: Summary,
}

impl Observer for Recorder {
    fn event(&mut self, event: &Event) -> anyhow::Result<()> {
        self.writer.event(event).context("cannot write the capture")
    }

    fn turn(&mut self, turn: &Turn<'_>) -> anyhow::Result<bool> {
        self.summary.update(&turn.counters, turn.unreadable);
        for incident in turn.incidents {
            self.summary.count(incident);
        }
        if !turn.incidents.is_empty() {
            // Whoever kills us keeps what was judged.
            self.writer.flush().context("cannot write the capture")?;
        }
        Ok(true)
    }
}

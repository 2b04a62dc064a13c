//! `rsttrace record FILE`: traces, and writes the event stream to a file instead of printing verdicts.

use std::{fs::File, io::BufWriter, path::Path};

use anyhow::Context as _;
use rsttrace_core::{
    capture::Writer,
    event::Event,
    summary::{Summary, summary_text},
};
use rustix::fs::{Mode, OFlags};

use super::{
    Exit, Failure, say,
    stream::{Observer, Turn, trace},
};
use crate::cli::RecordArgs;

/// Records until a signal, or until the duration has passed.
///
/// # Errors
/// [`Failure`] when the file exists or cannot be written, or when tracing cannot start.
pub fn run(args: &RecordArgs) -> Result<Exit, Failure> {
    let file = create(&args.file)?;
    let writer = Writer::new(BufWriter::new(file)).context("cannot write the capture")?;
    let mut recorder = Recorder { writer, summary: Summary::default(), empty: true };
    let traced = trace(&args.trace, &mut recorder);
    recorder.writer.flush().context("cannot write the capture")?;
    if traced.is_err() && recorder.empty {
        // An empty file would make the next run of the same command fail.
        let _ = std::fs::remove_file(&args.file);
    }
    traced?;
    say(&summary_text(&recorder.summary));
    Ok(Exit::Fine)
}

/// Only the owner may read the file, because it has addresses and process names. A link is not followed.
fn create(path: &Path) -> anyhow::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from).with_context(|| {
        format!("cannot create {} (an existing file is never overwritten)", path.display())
    })
}

struct Recorder {
    writer: Writer<BufWriter<File>>,
    summary: Summary,
    /// No event was recorded yet.
    empty: bool,
}

impl Observer for Recorder {
    fn event(&mut self, event: &Event) -> anyhow::Result<()> {
        self.empty = false;
        self.writer.event(event).context("cannot write the capture")
    }

    fn turn(&mut self, turn: &Turn<'_>) -> anyhow::Result<bool> {
        self.summary.update(&turn.counters, turn.unreadable);
        for incident in turn.incidents {
            self.summary.count(incident);
        }
        if !turn.incidents.is_empty() {
            // A recorder that is killed loses no event of an incident that was judged.
            self.writer.flush().context("cannot write the capture")?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    /// A folder of one test, removed when it is dropped.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_capture_is_readable_by_its_owner_only() {
        let folder = Folder::new("rsttrace-mode");
        let file = create(&folder.0.join("x.cap")).expect("a new file");
        let mode = file.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn existing_files_are_not_overwritten_and_links_are_not_followed() {
        let folder = Folder::new("rsttrace-links");
        let (file, link, dangling) =
            (folder.0.join("file"), folder.0.join("link"), folder.0.join("dangling"));
        fs::write(&file, "precious").expect("a file");
        symlink(&file, &link).expect("a link");
        symlink(folder.0.join("elsewhere"), &dangling).expect("a link");
        for path in [&file, &link, &dangling] {
            let error = create(path).expect_err("refused").to_string();
            assert!(error.contains("never overwritten"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).expect("the file"), "precious");
        assert!(!folder.0.join("elsewhere").exists());
    }
}

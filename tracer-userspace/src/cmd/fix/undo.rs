//! `rsttrace fix --undo` and `--list`: the applied fixes, and how they are undone.

use anyhow::anyhow;
use rsttrace_apply::{
    disk,
    journal::{Item, Journal, is_id},
    live::Live,
    run::{self, Effects},
    store::Store,
};
use rsttrace_host::Host;

use super::{print, usage};
use crate::{
    cli::FixArgs,
    cmd::{Exit, Failure, say},
    render::fix as out,
};

fn open(args: &FixArgs) -> Result<Option<Store>, Failure> {
    if !Store::exists(&args.state_dir) {
        return Ok(None);
    }
    let opened = Store::open(&args.state_dir);
    opened.map(Some).map_err(|error| {
        let exit = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::NotPermitted,
            _ => Exit::Internal,
        };
        let error = anyhow!("cannot open {}: {error}", args.state_dir.join("undo").display());
        Failure { exit, error }
    })
}

/// Undoes one applied fix.
pub fn undo(args: &FixArgs) -> Result<Exit, Failure> {
    let wanted = args.undo.as_deref().filter(|id| *id != "newest");
    let ids = match open(args)? {
        Some(store) => Some((store.ids().map_err(anyhow::Error::from)?, store)),
        None => None,
    };
    let newest = ids.as_ref().and_then(|(ids, _)| ids.last());
    let Some((id, (ids, store))) =
        wanted.map(ToOwned::to_owned).or(newest.cloned()).zip(ids.as_ref())
    else {
        return match wanted {
            Some(id) => Err(usage(unknown(id))),
            None => {
                say("rsttrace: no fix was applied; nothing to undo");
                Ok(Exit::Fine)
            }
        };
    };
    if is_id(&id) && !ids.contains(&id) {
        return Err(usage(unknown(&id)));
    }
    let journal = store.load(&id).map_err(|why| anyhow!("the journal {id} {why}"))?;
    let host = Host::new().map_err(anyhow::Error::from)?;
    if let Some(why) = host.files_elsewhere()
        && written_elsewhere(&journal)
    {
        return Err(anyhow!(
            "nothing was undone: {why}, and the files of {id} are on the host; run it there"
        )
        .into());
    }
    let mut live = Live::new(&host, store, "/".as_ref(), Some(&journal.about.boot_id));
    let undone = run::undo(&mut live, &journal, args.force);
    print(args, || out::undone_text(&journal, &undone), || out::undone_json(&journal, &undone))?;
    if undone.is_complete() {
        return Ok(Exit::Fine);
    }
    let left: Vec<_> = undone.foreign.iter().chain(&undone.failed).cloned().collect();
    let first = match applied_over(&journal, store) {
        Some(later) => {
            format!("; {later} was applied later and changed the same: undo {later} first")
        }
        None => String::new(),
    };
    Err(anyhow!("not completely undone: {}{first}", left.join("; ")).into())
}

fn unknown(id: &str) -> anyhow::Error {
    anyhow!(
        "unknown undo id `{}` (`rsttrace fix --list` shows the applied fixes)",
        id.escape_debug()
    )
}

/// The newest apply after this one that changed one of the same values or files.
fn applied_over(journal: &Journal, store: &Store) -> Option<String> {
    let ids = store.ids().ok()?.into_iter().rev();
    let touches = |other: &Journal| {
        let mut names = other.items.iter().map(Item::describe);
        names.any(|what| journal.items.iter().any(|mine| mine.describe() == what))
    };
    ids.take_while(|id| *id > journal.about.id)
        .find(|id| store.load(id).is_ok_and(|other| touches(&other)))
}

/// Whether no file of the journal is here as it was written. Then this /etc is not the one that was written
/// to, and the files would seem to be undone already.
fn written_elsewhere(journal: &Journal) -> bool {
    let mut files = journal.items.iter().filter_map(|item| match item {
        Item::File { path, new, .. } => {
            Some(disk::read(path.as_ref()).is_ok_and(|now| now == *new))
        }
        Item::Value { .. } => None,
    });
    files.next().is_some_and(|first| !first && files.all(|is_same| !is_same))
}

/// Lists the applied fixes that can be undone.
pub fn list(args: &FixArgs) -> Result<Exit, Failure> {
    let mut journals = Vec::new();
    if let Some(store) = open(args)? {
        for id in store.ids().map_err(anyhow::Error::from)? {
            match store.load(&id) {
                Ok(journal) => journals.push(journal),
                Err(why) => say(&format!("rsttrace: the journal {id} {why}")),
            }
        }
    }
    print(args, || out::list_text(&journals), || out::list_json(&journals))
}

/// Whether the values of a journal still are what it set. Files are not compared.
pub fn is_still_set(journal: &Journal, live: &mut Live<'_>) -> bool {
    journal.items.iter().all(|item| match item {
        Item::Value { slot, new, .. } => live.value(slot).is_ok_and(|now| now == *new),
        Item::File { .. } => true,
    })
}

//! What was applied, and taking it back.

use anyhow::anyhow;
use rsttrace_apply::{
    disk,
    journal::{Item, Journal},
    live::Live,
    run::{Effects, undo as take_back},
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

/// Takes one apply back.
pub fn undo(args: &FixArgs) -> Result<Exit, Failure> {
    let wanted = args.undo.as_deref().filter(|id| *id != "newest");
    let ids = match open(args)? {
        Some(store) => Some((store.ids().map_err(anyhow::Error::from)?, store)),
        None => None,
    };
    let newest = ids.as_ref().and_then(|(ids, _)| ids.last());
    let Some((id, (_, store))) =
        wanted.map(ToOwned::to_owned).or(newest.cloned()).zip(ids.as_ref())
    else {
        return match wanted {
            Some(id) => Err(usage(anyhow!("nothing was applied as {id:?}"))),
            None => {
                say("rsttrace: nothing was applied, so there is nothing to take back");
                Ok(Exit::Fine)
            }
        };
    };
    let journal = store.load(&id).map_err(|why| match why.as_str() {
        "is not there" => usage(anyhow!("nothing was applied as {id:?}; --list tells what was")),
        _ => anyhow!("the journal {id} {why}").into(),
    })?;
    let host = Host::new().map_err(anyhow::Error::from)?;
    if let Some(why) = host.files_elsewhere()
        && written_elsewhere(&journal)
    {
        return Err(anyhow!(
            "nothing was taken back: {why}, and the files of {id} are on the host: run it there"
        )
        .into());
    }
    let mut live = Live::new(&host, store, "/".as_ref(), Some(&journal.about.boot_id));
    let undone = take_back(&mut live, &journal, args.force);
    print(args, || out::undone_text(&journal, &undone), || out::undone_json(&journal, &undone))?;
    if undone.is_complete() {
        return Ok(Exit::Fine);
    }
    let left: Vec<_> = undone.foreign.iter().chain(&undone.failed).cloned().collect();
    let first = match applied_over(&journal, store) {
        Some(later) => format!("; {later} was applied over it: take that back first"),
        None => String::new(),
    };
    Err(anyhow!("not everything was taken back: {}{first}", left.join("; ")).into())
}

/// The newest apply after this one that changed some of the same.
fn applied_over(journal: &Journal, store: &Store) -> Option<String> {
    let ids = store.ids().ok()?.into_iter().rev();
    let touches = |other: &Journal| {
        let mut whats = other.items.iter().map(Item::describe);
        whats.any(|what| journal.items.iter().any(|mine| mine.describe() == what))
    };
    ids.take_while(|id| *id > journal.about.id)
        .find(|id| store.load(id).is_ok_and(|other| touches(&other)))
}

/// Whether none of the journal's files stands here as it was left: then this is another /etc than the one
/// it was written to, where it would seem taken back already.
fn written_elsewhere(journal: &Journal) -> bool {
    let mut files = journal.items.iter().filter_map(|item| match item {
        Item::File { path, new, .. } => {
            Some(disk::read(path.as_ref()).is_ok_and(|now| now == *new))
        }
        Item::Value { .. } => None,
    });
    files.next().is_some_and(|first| !first && files.all(|stands| !stands))
}

/// Tells what can be taken back.
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

/// Whether the values that a journal set still are what it set.
pub fn stands(journal: &Journal, live: &mut Live<'_>) -> bool {
    journal.items.iter().all(|item| match item {
        Item::Value { slot, new, .. } => live.value(slot).is_ok_and(|now| now == *new),
        Item::File { .. } => true,
    })
}

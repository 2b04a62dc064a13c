use rsttrace::{correlator::Correlator, kernel::{live::{Live, now}, attach::AttachOptions}};
fn main() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let t = std::time::Instant::now();
        let mut live = match Live::start(AttachOptions::default()) { Ok(l) => l, Err(e) => { eprintln!("{e:?}"); return; } };
        let mut c = Correlator::new();
        c.push(live.opening());
        for s in &live.session.coverage { eprintln!("{s:?}"); }
        for r in &live.refused { eprintln!("{} {}", r.program, r.why.replace("\n", " ")); }
        eprintln!("rsttrace: ready {:?}", t.elapsed());
        loop {
            let _ = tokio::time::timeout(std::time::Duration::from_millis(20), live.readable()).await;
            for e in live.drain() { if std::env::var("EV").is_ok() { println!("{e:?}"); } c.push(e); }
            for i in c.tick(now()) { println!("{}\n   {} {:?} ev={:#?}\n fixes={:?} owner={:?} victim={:?} act={:?}", i.message(), i.cause.id, i.confidence, i.evidence, i.fixes.first().map(|f| f.commands()), i.owner, i.victim, i.action); }
        }
    });
}

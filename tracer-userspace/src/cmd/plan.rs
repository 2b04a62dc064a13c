//! `rsttrace plan`: settings for a load, with their arithmetic.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rsttrace_host::{Host, view};
use rsttrace_model::configured::KubeProxy;
use rsttrace_plan::{Demand, InForce, Kernel, Measured, Plan, Survey, balancer};
use rsttrace_schema::json;

use super::{Exit, Failure, say, stdout};
use crate::{
    cli::{PageFormat, PlanArgs, page_width},
    render::plan,
};

/// How often entries are counted between the two readings of counters, because a peak can be short.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How often the time left is printed.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Computes and prints.
///
/// # Errors
/// [`Failure`] when no setting can hold the load, or standard output cannot be written.
pub fn run(args: &PlanArgs) -> Result<Exit, Failure> {
    let demand = demand(args)?;
    let made = Plan::new(demand)
        .map_err(|why| Failure { exit: Exit::Usage, error: anyhow::anyhow!("no plan: {why}") })?;
    let text = match args.page.output {
        PageFormat::Text => plan::text(&made, args.page.color.on_stdout(), page_width()),
        PageFormat::Json => json::line(&plan::json(&made)) + "\n",
        PageFormat::JsonPretty => json::pretty(&json::line(&plan::json(&made))) + "\n",
    };
    stdout::write(&text)?;
    Ok(Exit::Fine)
}

fn demand(args: &PlanArgs) -> Result<Demand, Failure> {
    let host = Host::new().context("cannot inspect this host")?;
    let facts = host.machine();
    let (mut now, mut measured, mut survey) = (InForce::default(), Measured::default(), None);
    let (mut ipvs, mut kube_proxy) = (true, None);
    if args.from_host {
        measured = measure(&host, args.sample);
        let view = view::read(&host);
        now = InForce::of(&view, &measured);
        survey = Some(Survey::new(&measured, &now, &view));
        ipvs = balancer(&view).is_some();
        kube_proxy = view.configured.kube_proxy.clone();
        for unseen in &view.not_read {
            say(&format!("rsttrace: not visible: {} ({})", unseen.what, unseen.why));
        }
    }
    let measured_udp = measured.udp(now.udp_s);
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs().max(1));
    now.udp_s = seconds(args.udp_timeout).unwrap_or(now.udp_s);
    now.time_wait_s = seconds(args.time_wait).unwrap_or(now.time_wait_s);
    now.ipvs_tcp_s = seconds(args.ipvs_timeout).unwrap_or(now.ipvs_tcp_s);
    let kernel = args.kernel.or_else(|| Kernel::parse(&facts.release));
    Ok(Demand {
        connections: args.connections.or(measured.connections).unwrap_or(0),
        cps: args.cps.unwrap_or(measured.cps()),
        life_ms: u64::try_from(args.life.as_millis()).unwrap_or(u64::MAX),
        udp: args.udp.or(measured_udp).unwrap_or(0),
        quiet_s: args.quiet.map(|quiet| quiet.as_secs().max(1)),
        ram_bytes: args
            .ram
            .or(facts.ram_bytes)
            .context("cannot read the memory size of this machine (set it with --ram)")?,
        cpus: args.cpus.unwrap_or(facts.cpus.into()),
        kernel: kernel
            .context("cannot parse the kernel release of this machine (set it with --kernel)")?,
        ipvs: ipvs && !args.no_ipvs,
        kube_proxy: kube_proxy.or_else(|| args.kube_proxy.then(KubeProxy::default)),
        path: args.assume.clone(),
        http_proxy_s: seconds(args.http_proxy),
        measured: survey,
        now,
        max: args.max,
    })
}

/// Reads the counters at the beginning and the end of the sample, and counts entries in between.
fn measure(host: &Host, sample: Duration) -> Measured {
    say(&format!("rsttrace: measuring for {} s", sample.as_secs_f64()));
    let start = Instant::now();
    let mut readings = vec![host.traffic(true)];
    let mut printed = start;
    loop {
        let left = sample.saturating_sub(start.elapsed());
        thread::sleep(left.min(COUNT_EVERY));
        if start.elapsed() >= sample {
            break;
        }
        readings.push(host.traffic(false));
        if printed.elapsed() >= PROGRESS_EVERY {
            printed = Instant::now();
            let left = sample.saturating_sub(start.elapsed()).as_secs_f64();
            say(&format!("rsttrace: {left:.0} s left"));
        }
    }
    // Both readings take about the same time to reach a namespace, so this is the time between them for each
    // namespace.
    let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    readings.push(host.traffic(true));
    Measured::of(&readings, ms)
}

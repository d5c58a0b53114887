//! The changes that a cluster goes through, one after the other. Each leaves it whole.

use super::Cluster;
use crate::Outcome;
use rustix::process::Signal;
use std::collections::BTreeSet;

type Scenario = (&'static str, fn(&mut Cluster) -> Outcome<()>);

/// In this order.
const SCENARIOS: [Scenario; 9] = [
    ("steady", steady),
    ("relay killed", killed),
    ("relay hangs", hangs),
    ("relay restarted", restarted),
    ("relay drained", drained),
    ("balancer reloaded", reloaded),
    ("relay added", added),
    ("two balancers", two_balancers),
    ("balancer killed", balancer_killed),
];

/// Plays those whose names contain one of `wanted`; all if there are none.
pub(super) fn play(cluster: &mut Cluster, wanted: &[String]) -> Outcome<()> {
    let is_wanted = |(name, _): &&Scenario| {
        wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()))
    };
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(is_wanted).collect();
    if chosen.is_empty() {
        let names = SCENARIOS.map(|(name, _)| name);
        return Err(format!("--scenario names none of: {}", names.join(", ")).into());
    }
    for (name, scenario) in chosen {
        scenario(cluster).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn nobody() -> BTreeSet<u32> {
    BTreeSet::new()
}

fn steady(cluster: &mut Cluster) -> Outcome<()> {
    cluster.watch("steady", &nobody(), |_| Ok(None))
}

fn killed(cluster: &mut Cluster) -> Outcome<()> {
    let touched = cluster.ids_on(0, "b")?;
    cluster.watch("relay killed", &touched, |cluster| {
        let relay = cluster.relay("b")?;
        relay.signal(Signal::KILL)?;
        relay.await_end()?;
        Ok(None)
    })?;
    cluster.watch("  and started again", &touched, |cluster| {
        cluster.relay("b")?.start()?;
        Ok(None)
    })
}

/// A process that is stopped: the kernel still takes connections for it.
fn hangs(cluster: &mut Cluster) -> Outcome<()> {
    let touched = cluster.ids_on(0, "c")?;
    cluster.watch("relay hangs", &touched, |cluster| {
        cluster.relay("c")?.signal(Signal::STOP)?;
        Ok(None)
    })?;
    cluster.watch("  and goes on", &touched, |cluster| {
        cluster.relay("c")?.signal(Signal::CONT)?;
        Ok(None)
    })
}

fn restarted(cluster: &mut Cluster) -> Outcome<()> {
    let touched = cluster.ids_on(0, "a")?;
    cluster.watch("relay restarted", &touched, |cluster| {
        let relay = cluster.relay("a")?;
        relay.signal(Signal::TERM)?;
        relay.await_end()?;
        relay.start()?;
        Ok(None)
    })
}

fn drained(cluster: &mut Cluster) -> Outcome<()> {
    // Whatever came before may have left it with nobody.
    let name = ["b", "c", "a"];
    let mut fullest = ("b", nobody());
    for name in name {
        let there = cluster.ids_on(0, name)?;
        if there.len() > fullest.1.len() {
            fullest = (name, there);
        }
    }
    let (name, touched) = fullest;
    cluster.watch("relay drained", &touched, |cluster| {
        cluster.relay(name)?.drain()?;
        Ok(None)
    })?;
    cluster.watch("  and stopped", &touched, |cluster| {
        let relay = cluster.relay(name)?;
        relay.signal(Signal::TERM)?;
        relay.await_end()?;
        Ok(None)
    })?;
    cluster.relay(name)?.start()
}

fn reloaded(cluster: &mut Cluster) -> Outcome<()> {
    let [first, _] = &cluster.balancers;
    first.await_resync();
    cluster.watch("balancer reloaded", &nobody(), |cluster| {
        let [first, _] = &mut cluster.balancers;
        first.reload()?;
        Ok(None)
    })
}

fn added(cluster: &mut Cluster) -> Outcome<()> {
    cluster.relay("d")?.start()?;
    cluster.configure(4)?;
    let [first, _] = &cluster.balancers;
    first.await_resync();
    let before = cluster.ids;
    cluster.watch("relay added", &nobody(), |cluster| {
        let [first, _] = &mut cluster.balancers;
        first.reload()?;
        Ok(None)
    })?;
    let moved = cluster.ids_on(0, "d")?.len();
    cluster.open(before)?;
    let new = cluster.ids_on(0, "d")?.len();
    if let Some(row) = cluster.rows.last_mut() {
        row.note = Some(format!(
            "{moved} of {before} old ids moved to it, {} of {before} new ones went there",
            new - moved
        ));
    }
    Ok(())
}

fn two_balancers(cluster: &mut Cluster) -> Outcome<()> {
    let [first, second] = &mut cluster.balancers;
    second.start()?;
    second.await_resync();
    let both = vec![first.address, second.address];
    cluster.world.doors.set(both);
    let touched = cluster.ids_on(1, "c")?;
    cluster.watch("two balancers", &nobody(), |_| Ok(None))?;
    cluster.watch("  a relay killed", &touched, |cluster| {
        let relay = cluster.relay("c")?;
        relay.signal(Signal::KILL)?;
        relay.await_end()?;
        Ok(None)
    })?;
    cluster.watch("  and started again", &touched, |cluster| {
        cluster.relay("c")?.start()?;
        Ok(None)
    })
}

/// Whoever was connected by it dials the other one. It needs two, so it is after they have been
/// started.
fn balancer_killed(cluster: &mut Cluster) -> Outcome<()> {
    let [first, second] = &mut cluster.balancers;
    if !second.runs() {
        second.start()?;
        second.await_resync();
        let both = vec![first.address, second.address];
        cluster.world.doors.set(both);
    }
    cluster.watch("balancer killed", &nobody(), |cluster| {
        let [first, _] = &mut cluster.balancers;
        first.end();
        Ok(None)
    })
}

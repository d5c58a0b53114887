//! Phones that connect all at once, once or several times, and what that cost the relay.

use crate::sample::Connecting;
use crate::tls::Handshakes;
use serde::Serialize;
use std::time::Duration;

/// All phones, connected once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Storm {
    pub(crate) connecting: Connecting,
    /// CPU time of the relay, if its process is known.
    pub(crate) cpu: Option<Duration>,
    /// The relay's resident memory before.
    pub(crate) resident_before: Option<u64>,
    /// TLS handshakes; none without TLS.
    pub(crate) handshakes: Handshakes,
}

/// What handshakes cost the relay, with everything from accepting a connection to its upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Cost {
    pub(crate) cpu_us_per_handshake: f64,
    pub(crate) per_cpu_second: f64,
}

/// TLS in storms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Costs {
    /// Of phones that had no session.
    #[serde(rename = "cost_of_full", skip_serializing_if = "Option::is_none")]
    pub(crate) full: Option<Cost>,
    /// Of phones that had one to resume, if the relay resumed any.
    #[serde(rename = "cost_of_resumed", skip_serializing_if = "Option::is_none")]
    pub(crate) resumed: Option<Cost>,
    /// How many of these it resumed, 1.0 is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resumed_share: Option<f64>,
}

/// The mean of several storms. Where phones `resume`, they can from the second storm on, and that
/// is what counts. The memory is the first one's: the others find what it left.
pub(crate) fn mean(storms: &[Storm], resume: bool) -> Connecting {
    let (Some(first), counted) = (storms.first(), second_on(storms, resume)) else {
        return Connecting::default();
    };
    let mean = |of: &dyn Fn(&Connecting) -> f64| {
        let sum: f64 = counted.iter().map(|storm| of(&storm.connecting)).sum();
        sum / counted.len() as f64
    };
    let known = first.connecting.cpu_us_per_upgrade;
    Connecting {
        cpu_us_per_upgrade: known.map(|_| mean(&|c| c.cpu_us_per_upgrade.unwrap_or(0.0))),
        upgrades_per_second: mean(&|c| c.upgrades_per_second),
        ..first.connecting
    }
}

/// What handshakes cost in these storms.
pub(crate) fn costs(storms: &[Storm], resume: bool) -> Costs {
    if !resume {
        return Costs { full: cost(storms), ..Costs::default() };
    }
    let (first, later) = storms.split_at(storms.len().min(1));
    let count = |of: fn(&Handshakes) -> u64| later.iter().map(|s| of(&s.handshakes)).sum::<u64>();
    let (full, resumed) = (count(|h| h.full), count(|h| h.resumed));
    let share = (full + resumed > 0).then(|| resumed as f64 / (full + resumed) as f64);
    Costs { full: cost(first), resumed: cost(later).filter(|_| resumed > 0), resumed_share: share }
}

fn second_on(storms: &[Storm], resume: bool) -> &[Storm] {
    let later = storms.get(usize::from(resume)..).unwrap_or_default();
    if later.is_empty() { storms } else { later }
}

fn cost(storms: &[Storm]) -> Option<Cost> {
    let handshakes: u64 = storms.iter().map(|s| s.handshakes.full + s.handshakes.resumed).sum();
    let cpu = storms.iter().map(|storm| storm.cpu).sum::<Option<Duration>>()?.as_secs_f64();
    (handshakes > 0 && cpu > 0.0).then(|| Cost {
        cpu_us_per_handshake: cpu * 1e6 / handshakes as f64,
        per_cpu_second: handshakes as f64 / cpu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storm(cpu_ms: u64, full: u64, resumed: u64) -> Storm {
        let connecting = Connecting {
            cpu_us_per_upgrade: Some(cpu_ms as f64 * 10.0),
            upgrades_per_second: 1000.0,
            resident_bytes_per_phone: Some(cpu_ms as f64),
        };
        Storm {
            connecting,
            cpu: Some(Duration::from_millis(cpu_ms)),
            handshakes: Handshakes { full, resumed, agreed: Vec::new() },
            ..Storm::default()
        }
    }

    #[test]
    fn without_resuming_every_storm_is_full() {
        let storms = [storm(40, 100, 0), storm(20, 100, 0)];
        let costs = costs(&storms, false);
        let full = Cost { cpu_us_per_handshake: 300.0, per_cpu_second: 200.0 / 0.06 };
        assert_eq!(costs, Costs { full: Some(full), ..Costs::default() });
        assert_eq!(mean(&storms, false).cpu_us_per_upgrade, Some(300.0));
        assert_eq!(mean(&storms, false).resident_bytes_per_phone, Some(40.0));
    }

    #[test]
    fn the_first_storm_has_nothing_to_resume() {
        let storms = [storm(40, 100, 0), storm(10, 10, 90), storm(10, 0, 100)];
        let costs = costs(&storms, true);
        assert_eq!(costs.full.map(|cost| cost.cpu_us_per_handshake), Some(400.0));
        assert_eq!(costs.resumed.map(|cost| cost.cpu_us_per_handshake), Some(100.0));
        assert_eq!(costs.resumed_share, Some(0.95));
        assert_eq!(mean(&storms, true).cpu_us_per_upgrade, Some(100.0));
    }

    #[test]
    fn a_relay_that_resumes_nothing_has_no_cost_of_it() {
        let costs = costs(&[storm(40, 100, 0), storm(40, 100, 0)], true);
        assert_eq!((costs.resumed, costs.resumed_share), (None, Some(0.0)));
    }

    #[test]
    fn plain_connections_and_unknown_processes_have_no_cost() {
        assert_eq!(costs(&[storm(40, 0, 0)], false), Costs::default());
        let unknown = Storm { cpu: None, ..storm(40, 100, 0) };
        assert_eq!(costs(&[unknown], false), Costs::default());
    }
}

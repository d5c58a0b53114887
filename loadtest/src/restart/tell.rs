//! Tables and plots of upgrades under load.

use super::session::{Row, Upgrade};
use crate::plot::{Line, Plot};
use crate::{Outcome, page};
use std::fmt::Write as _;
use std::path::Path;

/// What is longer is more than a bystander was promised, in milliseconds.
const PROMISED_MS: f64 = 300.0;

/// The table: a line for each setting.
pub(super) fn table(rows: &[Row]) -> String {
    let mut told = String::new();
    for row in rows {
        let _ = write!(told, "{}", one(row));
    }
    let _ = writeln!(
        told,
        "Every frame was checked: none was lost, doubled, altered or out of order, and nobody was \
         closed.\nA pause is what a worker of the relay stood still; cut are TLS handshakes that an \
         upgrade ended, whose phones dialled again."
    );
    told
}

fn one(row: &Row) -> String {
    let Row { scenario, over, workers, shape, size, upgrades, round_trips, .. } = row;
    let moved = most(upgrades, |one| one.report.connections as f64);
    let pause = |one: &Upgrade| one.report.pause_ms;
    let left_out: u64 = upgrades.iter().map(|one| one.report.left_out).sum();
    let cut: u64 = upgrades.iter().map(|one| one.cut_handshakes).sum();
    let [p50, p999, longest] =
        [round_trips.p50_us, round_trips.p999_us, round_trips.max_us].map(|us| us / 1000.0);
    let worst = most(upgrades, |one| one.felt.p999_us / 1000.0);
    let verdict = if worst > PROMISED_MS { " (MORE THAN 300)" } else { "" };
    let mut told = format!(
        "{scenario:?} {shape}, {size} B, over {over}, {workers}: {} upgrades of {moved:.0} \
         connections, {left_out} left out, {cut} cut\n  pause {:.1} ms, at most {:.1}; command {:.0} \
         ms\n  round trips {p50:.2} ms (p50), {p999:.1} (p99.9), {longest:.1} (longest); p99.9 around \
         the worst upgrade {worst:.1} ms{verdict}\n  {:.0} messages/s",
        upgrades.len(),
        median(upgrades, pause),
        most(upgrades, pause),
        median(upgrades, |one| one.took_ms),
        row.messages_per_second,
    );
    let footprints = || upgrades.iter().filter_map(|one| one.footprint);
    let largest = footprints().max_by(|a, b| a.both_mib.total_cmp(&b.both_mib));
    if let Some(one) = largest {
        let verdict = if one.is_allowed() { "" } else { " (MORE THAN TWICE AND 20)" };
        let _ = write!(
            told,
            "\n  resident {:.1} MiB before, both {:.1} at most{verdict}, {:.1} after; descriptors {} \
             and {} of {}",
            one.before_mib,
            one.both_mib,
            one.after_mib,
            one.descriptors_before,
            one.descriptors_after,
            one.descriptor_limit
        );
    }
    told.push('\n');
    told
}

fn most(upgrades: &[Upgrade], of: impl Fn(&Upgrade) -> f64) -> f64 {
    upgrades.iter().map(of).fold(0.0, f64::max)
}

fn median(upgrades: &[Upgrade], of: impl Fn(&Upgrade) -> f64) -> f64 {
    let mut all: Vec<f64> = upgrades.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

/// Writes the page: the table, and round trips over time for each setting, with its upgrades.
pub(super) fn page(path: &Path, rows: &[Row]) -> Outcome<()> {
    let plot = |row: &Row| {
        let Row { scenario, over, workers, shape, .. } = row;
        let title = format!(
            "{scenario:?} {shape} over {over}, {workers}: round trips in ms, over seconds; \
             upgrades are marked"
        );
        let line = |name: &str, of: fn(&super::session::Point) -> f64| Line {
            name: name.to_owned(),
            points: row.points.iter().map(|point| (point.second, of(point))).collect(),
        };
        let lines = vec![
            line("the longest of 25 ms", |point| point.longest_ms),
            line("their median", |point| point.median_ms),
        ];
        let marks = row.upgrades.iter().map(|one| one.second).collect();
        Plot { title: &title, ticks: None, marks, lines }.svg()
    };
    let plots: Vec<String> = rows.iter().map(plot).collect();
    page::write_with(path, &table(rows), &plots.concat())
}

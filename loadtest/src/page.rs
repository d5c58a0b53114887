//! A page with tables and plots that needs nothing from outside.

use crate::Outcome;
use crate::measured::Measured;
use crate::plot::{Line, Plot, escape};
use crate::sample::Sample;
use crate::table;
use std::fmt::Write as _;
use std::path::Path;

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width\"><title>loadtest</title><style>\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;\
max-width:60em;padding:0 1em}table{border-collapse:collapse;margin:1em 0}\
td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #8884}\
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}\
svg text{font-size:11px;fill:currentColor}.end{text-anchor:end}.middle{text-anchor:middle}\
.grid{stroke:#8884;fill:none}.mark{stroke:#888;stroke-dasharray:3;fill:none}polyline{fill:none;stroke-width:1.5}.legend span{margin-right:1em}\
.wide{overflow-x:auto}</style></head><body><h1>loadtest</h1>";

/// Where percentiles stand on their axis, so that 90, 99 and 99.9 are equally far apart.
const PERCENT_TICKS: [(f64, &str); 5] = [
    (0.0, "0 %"),
    (std::f64::consts::LOG10_2, "50 %"),
    (1.0, "90 %"),
    (2.0, "99 %"),
    (3.0, "99.9 %"),
];

/// Writes the page: `summary`, then everything that was measured.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn write(path: &Path, summary: &str, all: &[Measured]) -> Outcome<()> {
    let sections: String = all.iter().map(section).collect();
    write_with(path, summary, &(plots(all) + &sections))
}

/// Writes the page: `summary`, then `body`, which is HTML.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn write_with(path: &Path, summary: &str, body: &str) -> Outcome<()> {
    let mut page = String::from(HEAD);
    if !summary.is_empty() {
        let _ = write!(page, "<pre class=\"wide\">{}</pre>", escape(summary));
    }
    page.push_str(body);
    page.push_str("</body></html>\n");
    std::fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(())
}

fn section(measured: &Measured) -> String {
    let mut page = format!("<h2>{}</h2><table>", escape(&table::title(measured)));
    for (what, value) in table::rows(measured) {
        let _ = write!(page, "<tr><td>{}<td>{}", escape(what), escape(&value));
    }
    page.push_str("</table>");
    for note in table::notes(measured) {
        let _ = write!(page, "<p>{}</p>", escape(&note));
    }
    page
}

fn plots(all: &[Measured]) -> String {
    let over_time = |title, of: &dyn Fn(&Sample) -> Option<f64>| {
        let points = |measured: &Measured| {
            measured.samples.iter().filter_map(|s| Some((s.second, of(s)?))).collect()
        };
        Plot { title, ticks: None, marks: Vec::new(), lines: lines(all, &points) }.svg()
    };
    let tail = |percent: f64| -(1.0 - percent.min(99.99) / 100.0).log10();
    let latency =
        |measured: &Measured| measured.percentiles.iter().map(|(p, us)| (tail(*p), *us)).collect();
    let round_trips = Plot {
        title: "Round trip by percentile, µs",
        ticks: Some(&PERCENT_TICKS),
        marks: Vec::new(),
        lines: lines(all, &latency),
    };
    [
        round_trips.svg(),
        over_time("Messages per second, over seconds", &|s| Some(s.messages_per_second)),
        over_time("Resident memory of the relay in MiB, over seconds", &|s| s.resident_mib),
        over_time("Open descriptors of the relay, over seconds", &|s| {
            s.descriptors.map(|count| count as f64)
        }),
        over_time("Connections in the relay's table, over seconds", &|s| {
            s.tables.map(|tables| tables.connections as f64)
        }),
        over_time("Server-ids in the relay's table, over seconds", &|s| {
            s.tables.map(|tables| tables.server_ids as f64)
        }),
        over_time("Timers of the relay, over seconds", &|s| {
            s.tables.map(|tables| tables.timers as f64)
        }),
        over_time("KiB charged to the relay's memory budget, over seconds", &|s| {
            s.tables.map(|tables| tables.charged_bytes as f64 / 1024.0)
        }),
        over_time("CPUs that the relay used, over seconds", &|s| s.cpus),
    ]
    .concat()
}

/// A line for each measurement that has something to show.
fn lines(all: &[Measured], points: &dyn Fn(&Measured) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |measured: &Measured| {
        let Measured { subject, scenario, shape, size, .. } = measured;
        Line { name: format!("{subject}: {scenario} {shape}, {size} B"), points: points(measured) }
    };
    all.iter().map(line).filter(|line| line.points.len() > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::example;

    #[test]
    fn a_page_has_its_tables_and_plots_and_nothing_from_outside() {
        let file = format!("loadtest-page-{}.html", std::process::id());
        let path = std::env::temp_dir().join(file);
        write(&path, "summary & more", &[example(true), example(false)]).unwrap();
        let page = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(page.matches("<svg").count(), 5);
        assert_eq!(page.matches("<table").count(), 2);
        assert!(page.contains("summary &amp; more") && page.contains("relay &lt;1&gt;"));
        for outside in ["http", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}

//! What is told at the end: a table, JSON, or a page with plots that needs nothing from outside.

use crate::Outcome;
use crate::run::{Measured, Plan};
use crate::spec::Play;
use std::fmt::Write as _;
use std::path::Path;

/// Prints the outcome of single runs.
pub(crate) fn show(plan: &Plan, all: &[Measured], json: bool, page: Option<&Path>) -> Outcome<()> {
    for measured in all {
        match json {
            true => println!("{}", serde_json::to_string(measured)?),
            false => print_table(plan, measured),
        }
    }
    match page {
        Some(page) => write_page(page, plan, all),
        None => Ok(()),
    }
}

fn print_table(plan: &Plan, measured: &Measured) {
    let row = |what: &str, value: String| println!("{what:<44} {value:>14}");
    println!(
        "{}: {} binaries x phones, {} bytes, {} worker(s)",
        measured.subject, plan.shape, plan.size, plan.workers
    );
    if plan.play != Play::Idle {
        row("messages (each checked: right phone, right order)", measured.messages.to_string());
        row("messages per second", format!("{:.0}", measured.messages_per_second));
        row("relay CPU per message", format!("{:.2} us", measured.cpu_us_per_message));
        row("round trip p50", format!("{:.0} us", measured.p50_us));
        row("round trip p90", format!("{:.0} us", measured.p90_us));
        row("round trip p99", format!("{:.0} us", measured.p99_us));
        row("round trip p99.9", format!("{:.0} us", measured.p999_us));
        row("round trip max", format!("{:.0} us", measured.max_us));
        row("slowest phone's share of the median's", format!("{:.2}", measured.slowest_share));
    } else {
        row("CPU per idle connection", format!("{:.3} us/s", measured.idle_cpu_us_per_second));
    }
    row("relay CPU per upgraded connection", format!("{:.1} us", measured.cpu_us_per_upgrade));
    row("upgrades per second", format!("{:.0}", measured.upgrades_per_second));
    row("resident memory per phone", format!("{:.0} bytes", measured.bytes_per_phone));
    row("resident memory of the relay", format!("{:.1} MiB", measured.resident_mib));
    row("CPU of the relay", format!("{:.0} %", 100.0 * measured.relay_cpu_share));
    row("CPU of the busiest agent", format!("{:.0} %", 100.0 * measured.agent_cpu_share));
    let closed = matches!(plan.play, Play::Closed { .. } | Play::Push { .. });
    if closed && measured.agents_were_the_bottleneck(plan.workers) {
        println!("The relay was not saturated: the agents, not the relay, held the rate down.");
    }
}

/// Writes one page with plots: latency by percentile, memory and CPU over time.
pub(crate) fn write_page(path: &Path, plan: &Plan, all: &[Measured]) -> Outcome<()> {
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>loadtest</title><style>body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;\
         max-width:60em;padding:0 1em}table{border-collapse:collapse}td,th{padding:.2em .8em;\
         text-align:right;border-bottom:1px solid #ccc}svg{width:100%;height:auto}</style>",
    );
    writeln!(
        page,
        "<h1>loadtest</h1><p>{} binaries x phones, {} bytes, {} worker(s), {:.0} s each.</p>",
        plan.shape,
        plan.size,
        plan.workers,
        plan.time.as_secs_f64()
    )?;
    page.push_str(
        "<table><tr><th>relay<th>CPU per message, us<th>messages per second<th>p50, us<th>p99, us\
         <th>bytes per phone<th>CPU per upgrade, us",
    );
    for m in all {
        write!(
            page,
            "<tr><td>{}<td>{:.2}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.1}",
            escape(&m.subject),
            m.cpu_us_per_message,
            m.messages_per_second,
            m.p50_us,
            m.p99_us,
            m.bytes_per_phone,
            m.cpu_us_per_upgrade
        )?;
    }
    page.push_str("</table>");
    let lines = |of: &dyn Fn(&Measured) -> Vec<(f64, f64)>| -> Vec<(String, Vec<(f64, f64)>)> {
        all.iter().map(|m| (m.subject.clone(), of(m))).collect()
    };
    // Percentiles are spread so that 99, 99.9 and 99.99 stand equally far apart.
    let tail = |percent: f64| -(1.0 - (percent / 100.0).min(0.9999)).log10();
    let latency =
        |m: &Measured| m.percentiles.iter().map(|(p, us)| (tail(*p), *us)).collect::<Vec<_>>();
    plot(&mut page, "Round trip in us: left p0, then p90, p99, p99.9, p99.99", &lines(&latency))?;
    let memory =
        |m: &Measured| m.samples.iter().map(|s| (s.second, s.resident_mib)).collect::<Vec<_>>();
    plot(&mut page, "Resident memory in MiB, over seconds", &lines(&memory))?;
    let descriptors = |m: &Measured| {
        m.samples.iter().map(|s| (s.second, s.descriptors as f64)).collect::<Vec<_>>()
    };
    plot(&mut page, "Open descriptors, over seconds", &lines(&descriptors))?;
    let cpu = |m: &Measured| m.samples.iter().map(|s| (s.second, s.cpu_share)).collect::<Vec<_>>();
    plot(&mut page, "CPUs in use, over seconds", &lines(&cpu))?;
    std::fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(())
}

const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

fn plot(page: &mut String, title: &str, lines: &[(String, Vec<(f64, f64)>)]) -> std::fmt::Result {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let right = points().map(|(x, _)| *x).fold(0.0, f64::max);
    let top = points().map(|(_, y)| *y).fold(0.0, f64::max) * 1.1;
    if right <= 0.0 || top <= 0.0 {
        return Ok(());
    }
    writeln!(page, "<h2>{title}</h2><svg viewBox=\"0 0 800 300\" role=img>")?;
    for quarter in 0..=4 {
        let y = 270.0 - 62.5 * f64::from(quarter);
        let value = top * f64::from(quarter) / 4.0;
        let x = right * f64::from(quarter) / 4.0;
        let at = 60.0 + 180.0 * f64::from(quarter);
        write!(page, "<line x1=60 x2=790 y1={y} y2={y} stroke=\"#ddd\" />")?;
        write!(page, "<text x=52 y={} font-size=11 text-anchor=end>{value:.1}</text>", y + 4.0)?;
        write!(page, "<text x={at} y=288 font-size=11 text-anchor=middle>{x:.1}</text>")?;
    }
    let mut named: Vec<&str> = Vec::new();
    for (name, points) in lines {
        let number = named.iter().position(|other| other == name).unwrap_or(named.len());
        let colour = COLOURS.get(number % COLOURS.len()).copied().unwrap_or_default();
        if number == named.len() {
            let y = 24 + 16 * number;
            write!(
                page,
                "<text x=640 y={y} font-size=12 fill=\"{colour}\">{}</text>",
                escape(name)
            )?;
            named.push(name);
        }
        write!(page, "<polyline fill=none stroke=\"{colour}\" stroke-width=1.5 points=\"")?;
        for (x, y) in points {
            write!(page, "{:.1},{:.1} ", 60.0 + 720.0 * x / right, 270.0 - 250.0 * y / top)?;
        }
        page.push_str("\" />");
    }
    page.push_str("</svg>\n");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

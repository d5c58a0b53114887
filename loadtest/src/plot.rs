//! Line plots as inline SVG.

use std::fmt::Write as _;

/// A named line.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What a plot shows.
#[derive(Debug)]
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    /// What stands below the horizontal axis, at these places.
    pub(crate) ticks: Option<&'a [(f64, &'a str)]>,
    /// What is marked on the horizontal axis.
    pub(crate) marks: Vec<f64>,
    pub(crate) lines: Vec<Line>,
}

/// Colours that also the colour-blind tell apart.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#777777"];
/// The area of the lines.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 790.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 270.0;

impl Plot<'_> {
    /// The plot, or nothing if there is nothing to see.
    pub(crate) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let most_x = points().map(|(x, _)| *x).fold(0.0, f64::max);
        let most_y = round_up(points().map(|(_, y)| *y).fold(0.0, f64::max));
        if points().count() < 2 || most_x <= 0.0 || most_y <= 0.0 {
            return String::new();
        }
        let x_of = |x: f64| LEFT + (RIGHT - LEFT) * x / most_x;
        let y_of = |y: f64| BOTTOM - (BOTTOM - TOP) * y / most_y;
        let mut svg = format!("<h3>{}</h3><svg viewBox=\"0 0 800 300\" role=\"img\">", self.title);
        for quarter in 0..=4 {
            let value = most_y * f64::from(quarter) / 4.0;
            let y = y_of(value);
            let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {y}H{RIGHT}\"/>");
            let (x, text) = (LEFT - 8.0, number(value));
            let _ = write!(svg, "<text x=\"{x}\" y=\"{}\" class=\"end\">{text}</text>", y + 4.0);
        }
        let quarters = [0.0, 0.25, 0.5, 0.75, 1.0].map(|part| most_x * part);
        let default: Vec<(f64, String)> = quarters.map(|x| (x, number(x))).to_vec();
        let ticks = match self.ticks {
            Some(ticks) => ticks.iter().map(|(x, text)| (*x, (*text).to_owned())).collect(),
            None => default,
        };
        for (x, text) in ticks.iter().filter(|(x, _)| *x <= most_x) {
            let _ =
                write!(svg, "<text x=\"{}\" y=\"290\" class=\"middle\">{text}</text>", x_of(*x));
        }
        for x in self.marks.iter().filter(|x| **x <= most_x).map(|x| x_of(*x)) {
            let _ = write!(svg, "<path class=\"mark\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>");
        }
        for (at, line) in self.lines.iter().enumerate() {
            let colour = COLOURS.get(at % COLOURS.len()).copied().unwrap_or_default();
            let _ = write!(svg, "<polyline stroke=\"{colour}\" points=\"");
            for (x, y) in &line.points {
                let _ = write!(svg, "{:.1},{:.1} ", x_of(*x), y_of(*y));
            }
            svg.push_str("\"/>");
        }
        svg.push_str("</svg><p class=\"legend\">");
        for (at, line) in self.lines.iter().enumerate() {
            let colour = COLOURS.get(at % COLOURS.len()).copied().unwrap_or_default();
            let name = escape(&line.name);
            let _ = write!(svg, "<span style=\"color:{colour}\">&#9473; {name}</span> ");
        }
        svg.push_str("</p>");
        svg
    }
}

/// The next of 1, 2, 4, 5 or 10 times a power of ten.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 10.0];
    steps.iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(10.0 * power)
}

fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1}M", value / 1e6),
        value if value >= 1e4 => format!("{:.0}k", value / 1e3),
        value if value >= 10.0 || value == value.trunc() => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

/// Text as it may stand in a page.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: &[(f64, f64)]) -> String {
        let lines = vec![Line { name: "a<b".into(), points: points.to_vec() }];
        Plot { title: "t", ticks: None, marks: vec![5.0, 50.0], lines }.svg()
    }

    #[test]
    fn a_line_stays_inside_its_axes() {
        let svg = plot(&[(0.0, 0.0), (5.0, 37.0), (10.0, 40.0)]);
        let line = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(line.trim(), "70.0,270.0 430.0,38.8 790.0,20.0");
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
        assert_eq!(svg.matches("class=\"mark\"").count(), 1);
    }

    #[test]
    fn what_shows_nothing_is_left_out() {
        assert_eq!(plot(&[]), "");
        assert_eq!(plot(&[(1.0, 1.0)]), "");
        assert_eq!(plot(&[(0.0, 0.0), (1.0, 0.0)]), "");
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, end) in [(0.9, 1.0), (1.1, 2.0), (37.0, 40.0), (4100.0, 5000.0), (0.0, 0.0)] {
            assert_eq!(round_up(value), end, "{value}");
        }
    }
}

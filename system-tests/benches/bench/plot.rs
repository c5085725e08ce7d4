//! Two plots side by side as SVG: orders per second, and the percentiles of their times.

use std::fmt::Write as _;

use crate::Window;

/// The colours on a light or a dark background.
pub(crate) struct Theme {
    text: &'static str,
    faint: &'static str,
    grid: &'static str,
    rate: &'static str,
    times: [&'static str; 3],
}

pub(crate) const LIGHT: Theme = Theme {
    text: "#1f2328",
    faint: "#59636e",
    grid: "#d1d9e0",
    rate: "#1a7f37",
    times: ["#0969da", "#bc4c00", "#8250df"],
};
pub(crate) const DARK: Theme = Theme {
    text: "#f0f6fc",
    faint: "#9198a1",
    grid: "#3d444d",
    rate: "#3fb950",
    times: ["#4493f8", "#db6d28", "#ab7df8"],
};

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 300.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 252.0;
/// The least distance between two labels at the ends of lines.
const LABEL_DISTANCE: f64 = 14.0;

/// Returns the plots of the orders.
pub(crate) fn svg(orders: &[Window], theme: &Theme) -> String {
    let rates: Vec<_> = orders.iter().map(|window| window.figures.rate).collect();
    let time = |n: usize| orders.iter().map(move |window| window.figures.p50_p99_p999[n].as_secs_f64() * 1_000.0);
    let times = [0, 1, 2].map(|n| time(n).collect::<Vec<_>>());

    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="{}">
<title>Orders per second, and their times, by connections</title>
"#,
        theme.text
    );
    let panel = Panel::new(theme, 62.0, 362.0, orders, linear(&rates));
    svg += &panel.frame("orders per second", |tick| thousands(*tick));
    svg += &panel.line(&rates, theme.rate);
    for (n, rate) in rates.iter().enumerate() {
        let (x, y) = (panel.x(n), panel.y(*rate) - 10.0);
        svg += &text(x, y, "middle", theme.text, &thousands(*rate));
    }

    let panel = Panel::new(theme, 462.0, 762.0, orders, decades(times.iter().flatten()));
    svg += &panel.frame("time of an order, ms", ToString::to_string);
    let mut above = f64::INFINITY;
    for ((times, colour), name) in times.iter().zip(theme.times).zip(["p50", "p99", "p99.9"]) {
        svg += &panel.line(times, colour);
        above = panel.y(times.last().copied().unwrap_or_default()).min(above - LABEL_DISTANCE);
        svg += &text(panel.right + 10.0, above + 4.0, "start", colour, name);
    }
    svg + "</svg>\n"
}

/// One of the two plots, with its scale.
struct Panel<'a> {
    theme: &'a Theme,
    left: f64,
    right: f64,
    orders: &'a [Window],
    ticks: Ticks,
}

/// The horizontal grid lines, from the lowest to the highest.
struct Ticks {
    at: Vec<f64>,
    /// Whether the scale is logarithmic.
    log: bool,
}

impl<'a> Panel<'a> {
    fn new(theme: &'a Theme, left: f64, right: f64, orders: &'a [Window], ticks: Ticks) -> Self {
        Self { theme, left, right, orders, ticks }
    }

    fn x(&self, n: usize) -> f64 {
        self.left + (n as f64 + 0.5) * (self.right - self.left) / self.orders.len() as f64
    }

    fn y(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.ticks.log { value.ln() } else { value };
        let [low, high] = [self.ticks.at.first(), self.ticks.at.last()].map(|tick| scale(*tick.unwrap_or(&1.0)));
        BOTTOM - (scale(value) - low) / (high - low) * (BOTTOM - TOP)
    }

    /// Draws everything except the values.
    fn frame(&self, title: &str, label: impl Fn(&f64) -> String) -> String {
        let Self { theme, left, right, .. } = self;
        let mut frame = text(*left, 22.0, "start", theme.text, title);
        for tick in &self.ticks.at {
            let y = self.y(*tick);
            let _ = writeln!(frame, r#"<path d="M{left:.0} {y:.1}H{right:.0}" stroke="{}"/>"#, theme.grid);
            frame += &text(left - 8.0, y + 4.0, "end", theme.faint, &label(tick));
        }
        for (n, window) in self.orders.iter().enumerate() {
            frame += &text(self.x(n), BOTTOM + 20.0, "middle", theme.faint, &window.connections.to_string());
        }
        frame + &text((left + right) / 2.0, BOTTOM + 40.0, "middle", theme.faint, "connections")
    }

    fn line(&self, values: &[f64], colour: &str) -> String {
        let points: Vec<_> = values.iter().enumerate().map(|(n, value)| (self.x(n), self.y(*value))).collect();
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let mut line =
            format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n", path.join(" "));
        for (x, y) in points {
            let _ = writeln!(line, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"/>"#);
        }
        line
    }
}

fn text(x: f64, y: f64, anchor: &str, colour: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>\n")
}

/// Returns ticks from zero to above the highest value, in round steps.
fn linear(values: &[f64]) -> Ticks {
    let highest = values.iter().copied().fold(1.0, f64::max) * 1.1; // space for a label above the point
    let power = 10_f64.powf((highest / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| step * 5.0 >= highest);
    let step = step.unwrap_or(10.0 * power);
    Ticks { at: (0..=(highest / step).ceil() as u32).map(|n| f64::from(n) * step).collect(), log: false }
}

/// Returns the powers of ten around the values.
fn decades<'a>(values: impl Iterator<Item = &'a f64>) -> Ticks {
    let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), n| (low.min(*n), high.max(*n)));
    let [low, high] = [low.log10().floor() as i32, high.log10().ceil() as i32];
    Ticks { at: (low..=high.max(low + 1)).map(|n| 10_f64.powi(n)).collect(), log: true }
}

fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let (front, back) = digits.split_at(digits.len().saturating_sub(3));
    if front.is_empty() { digits } else { format!("{front},{back}") }
}

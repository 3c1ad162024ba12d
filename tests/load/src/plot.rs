//! Draws how a push grows with proxies and services, from what `ads -o json` wrote.
//!
//! Input: one or more files, each with any number of `ads` reports one after another. Four panels: time until the last
//! proxy and server CPU, against proxies (at the most frequent number of services) and against services (likewise).

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, ensure};
use plotters::prelude::*;
use serde_json::Value;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Reports of `ads -o json`.
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    /// The picture.
    #[arg(long, value_name = "FILE.svg")]
    out: PathBuf,
    /// Its heading.
    #[arg(long, default_value = "Pilot: what a push costs")]
    title: String,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
struct Point {
    services: u64,
    proxies: u64,
    what: String,
    seconds: f64,
    cpu: f64,
}

/// Clusters of a sidecar that are no service's: black hole, passthrough, inbound passthrough.
const OWN_CLUSTERS: u64 = 3;

fn points(report: &Value) -> Option<Vec<Point>> {
    let steps = std::iter::once(&report["firstConfig"]).chain(report["changes"].as_array()?);
    steps
        .map(|step| {
            Some(Point {
                services: report["clusters"].as_u64()?.saturating_sub(OWN_CLUSTERS),
                proxies: report["proxies"].as_u64()?,
                what: step["what"].as_str()?.to_owned(),
                seconds: step["seconds"].as_f64()?,
                cpu: step["serverCpuSeconds"].as_f64()?,
            })
        })
        .collect()
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for path in &args.reports {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        for report in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
            let report = report.with_context(|| format!("{}: not JSON", path.display()))?;
            let points = points(&report).with_context(|| {
                format!(
                    "{}: not a report of `meshload ads --server-pid PID -o json`",
                    path.display()
                )
            })?;
            all.extend(points);
        }
    }
    ensure!(!all.is_empty(), "no report in the files");
    draw(&all, args).with_context(|| format!("cannot draw {}", args.out.display()))?;
    println!("{} measurements in {}", all.len(), args.out.display());
    Ok(())
}

/// The value that most points have: the other axis of a series.
fn usual(points: &[Point], of: impl Fn(&Point) -> u64) -> u64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for point in points {
        *counts.entry(of(point)).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or(0, |(value, _)| value)
}

type Series = BTreeMap<String, Vec<(f64, f64)>>;

fn draw(all: &[Point], args: &Args) -> anyhow::Result<()> {
    let (services, proxies) = (usual(all, |p| p.services), usual(all, |p| p.proxies));
    let root = SVGBackend::new(&args.out, (1100, 860)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(&args.title, ("sans-serif", 24))?;
    let series =
        |keep: &dyn Fn(&Point) -> bool, x: &dyn Fn(&Point) -> u64, y: &dyn Fn(&Point) -> f64| {
            let mut out = Series::new();
            for point in all.iter().filter(|p| keep(p)) {
                let at = (x(point) as f64, y(point).max(0.005));
                out.entry(point.what.clone()).or_default().push(at);
            }
            for line in out.values_mut() {
                line.sort_by(|a, b| a.0.total_cmp(&b.0));
            }
            out
        };
    let by_proxies = |p: &Point| p.services == services;
    let by_services = |p: &Point| p.proxies == proxies;
    let panels = [
        (
            format!("last proxy, {services} services"),
            "proxies",
            "seconds",
            series(&by_proxies, &|p| p.proxies, &|p| p.seconds),
        ),
        (
            format!("last proxy, {proxies} proxies"),
            "services",
            "seconds",
            series(&by_services, &|p| p.services, &|p| p.seconds),
        ),
        (
            format!("server CPU, {services} services"),
            "proxies",
            "CPU seconds",
            series(&by_proxies, &|p| p.proxies, &|p| p.cpu),
        ),
        (
            format!("server CPU, {proxies} proxies"),
            "services",
            "CPU seconds",
            series(&by_services, &|p| p.services, &|p| p.cpu),
        ),
    ];
    for (area, (title, x, y, lines)) in root.split_evenly((2, 2)).iter().zip(&panels) {
        panel(area, title, x, y, lines)?;
    }
    root.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    x: &str,
    y: &str,
    lines: &Series,
) -> anyhow::Result<()> {
    let all: Vec<(f64, f64)> = lines.values().flatten().copied().collect();
    if all.is_empty() {
        return Ok(());
    }
    let bounds = |values: &dyn Fn(&(f64, f64)) -> f64| {
        let low = all.iter().map(values).fold(f64::MAX, f64::min);
        let high = all.iter().map(values).fold(0.0, f64::max);
        low / 1.3..high * 1.6
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(bounds(&|p| p.0).log_scale(), bounds(&|p| p.1).log_scale())?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&|v| format!("{v}"))
        .light_line_style(WHITE)
        .draw()?;
    for (index, (what, line)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(
                LineSeries::new(line.iter().copied(), color.stroke_width(2)).point_size(4),
            )?
            .label(what.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reports_become_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        let report = |proxies: u64, services: u64| {
            serde_json::json!({
                "proxies": proxies, "clusters": services + OWN_CLUSTERS,
                "firstConfig": {"what": "first config", "seconds": 0.1, "serverCpuSeconds": 0.2},
                "changes": [{"what": "one endpoint changed", "seconds": 0.15, "serverCpuSeconds": 0.01}],
            })
            .to_string()
        };
        let text = [report(10, 1000), report(100, 1000), report(100, 100)].join("\n");
        let (from, out) = (folder.path().join("a.json"), folder.path().join("a.svg"));
        std::fs::write(&from, text).unwrap();
        run(&Args {
            reports: vec![from],
            out: out.clone(),
            title: "t".to_owned(),
        })
        .unwrap();
        let picture = std::fs::read_to_string(out).unwrap();
        for word in ["1000 services", "100 proxies", "one endpoint changed"] {
            assert!(picture.contains(word), "{word}");
        }
    }
}

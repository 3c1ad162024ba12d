//! The timeline picture: requests per second by outcome as stacked bars, events as numbered marks.
//!
//! Buckets are merged so that a bar is at least three units wide. A bar with a failure is never invisible: its failed
//! part is at least two units high, whatever the scale. Colours are CSS classes, so that the page's light and dark
//! schemes apply.

use std::fmt::Write as _;
use std::time::Duration;

use crate::load::{Bucket, Summary};
use crate::model::{Event, Fault};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const PLOT: f64 = 150.0;
const HEIGHT: f64 = TOP + PLOT + 30.0;
const MARK: f64 = 9.0;

/// Draws one experiment. `seconds` is its length, `title` what a screen reader says.
pub(super) fn timeline(
    load: &Summary,
    events: &[Event],
    fault: Option<Fault>,
    seconds: f64,
    title: &str,
) -> String {
    let span = seconds.max(1.0);
    let bars = bars(load, span);
    let peak = bars
        .iter()
        .map(|b| b.rate(b.bucket.total()))
        .fold(1.0, f64::max);
    let top = nice_ceiling(peak);
    let plot = WIDTH - LEFT - RIGHT;
    let x = |t: f64| LEFT + t / span * plot;
    let height = |rate: f64| rate / top * PLOT;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#,
        super::escape(title)
    );
    if let Some(fault) = fault {
        let (from, to) = (x(fault.from), x(fault.to.min(span)));
        let wide = (to - from).max(1.0);
        let _ = write!(
            svg,
            r#"<rect class="fault" x="{from:.1}" y="{TOP}" width="{wide:.1}" height="{PLOT}"/>"#
        );
    }
    grid(&mut svg, top, span, &x);
    for bar in &bars {
        let (from, to) = (x(bar.from), x(bar.to.min(span)));
        let wide = (to - from - 0.6).max(0.6);
        let mut base = TOP + PLOT;
        let b = &bar.bucket;
        for (class, count) in [
            ("ok", b.ok),
            ("degraded", b.degraded),
            ("client", b.client_error),
            ("server", b.server_error),
            ("broken", b.transport),
        ] {
            if count == 0 {
                continue;
            }
            let mut tall = height(bar.rate(count));
            if class != "ok" {
                tall = tall.max(2.0);
            }
            base -= tall;
            let _ = write!(
                svg,
                r#"<rect class="{class}" x="{from:.1}" y="{base:.1}" width="{wide:.1}" height="{tall:.1}"/>"#
            );
        }
    }
    marks(&mut svg, events, &x);
    svg.push_str("</svg>");
    svg
}

struct Bar {
    from: f64,
    to: f64,
    bucket: Bucket,
}

impl Bar {
    fn rate(&self, count: u32) -> f64 {
        f64::from(count) / (self.to - self.from)
    }
}

/// Merges buckets into at most a bar per three units, of a whole number of buckets each. The last one is left out when
/// it is not complete: a short bar would look like a drop.
fn bars(load: &Summary, span: f64) -> Vec<Bar> {
    let width = load.width.as_secs_f64();
    let most = ((WIDTH - LEFT - RIGHT) / 3.0).floor();
    // Not below half a second: at tens of requests per second, 100 ms would only show the rhythm of the clients.
    let per_bar = ((span / width / most).ceil().max(0.5 / width)).ceil() as usize;
    load.buckets
        .chunks(per_bar)
        .enumerate()
        .map(|(index, chunk)| {
            let mut bucket = Bucket::default();
            for b in chunk {
                bucket.add(b);
            }
            Bar {
                from: (index * per_bar) as f64 * width,
                to: ((index + 1) * per_bar) as f64 * width,
                bucket,
            }
        })
        .filter(|bar| bar.to <= span || bar.bucket.failed() > 0)
        .collect()
}

fn grid(svg: &mut String, top: f64, span: f64, x: &impl Fn(f64) -> f64) {
    let bottom = TOP + PLOT;
    for share in [0.0, 0.5, 1.0] {
        let y = bottom - share * PLOT;
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}"/><text class="axis" x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            format_args!("{}/s", number(share * top))
        );
    }
    let step = time_step(span);
    let mut t = 0.0;
    while t <= span {
        let at = x(t);
        let _ = write!(
            svg,
            r#"<line class="tick" x1="{at:.1}" x2="{at:.1}" y1="{bottom}" y2="{}"/><text class="axis" x="{at:.1}" y="{}" text-anchor="middle">{} s</text>"#,
            bottom + 4.0,
            bottom + 18.0,
            number(t)
        );
        t += step;
    }
}

/// Numbered marks above the plot. Marks that would overlap are pushed to the right; a thin line leads to the true time.
fn marks(svg: &mut String, events: &[Event], x: &impl Fn(f64) -> f64) {
    let y = TOP - MARK - 3.0;
    let places = spread(events.iter().map(|e| x(e.t)).collect());
    for (index, (event, place)) in events.iter().zip(places).enumerate() {
        let at = x(event.t);
        let _ = write!(
            svg,
            r#"<g class="mark"><title>{:.1} s: {}</title><path d="M{at:.1} {} V{TOP} L{place:.1} {y:.1}"/><circle cx="{place:.1}" cy="{y:.1}" r="{MARK}"/><text x="{place:.1}" y="{:.1}" text-anchor="middle">{}</text></g>"#,
            event.t,
            super::escape(&event.event),
            TOP + PLOT,
            y + 3.6,
            index + 1
        );
    }
}

/// Moves places apart so that neighbours do not cover each other, and keeps all inside the picture.
fn spread(mut places: Vec<f64>) -> Vec<f64> {
    let room = (2.0 * MARK + 1.0).min((WIDTH - LEFT - RIGHT) / places.len().max(1) as f64);
    for index in 1..places.len() {
        places[index] = places[index].max(places[index - 1] + room);
    }
    let mut limit = WIDTH - MARK - 1.0;
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - room;
    }
    places
}

/// 1, 2 or 5 times a power of ten, at least `value`.
fn nice_ceiling(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0, 20.0]
        .into_iter()
        .map(|m| m * power)
        .find(|nice| *nice >= value * 1.02)
        .unwrap_or(20.0 * power)
}

fn time_step(span: f64) -> f64 {
    [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0]
        .into_iter()
        .find(|step| span / step <= 12.0)
        .unwrap_or(1800.0)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// How long the picture is, for callers that only have the load.
pub(super) fn length(load: &Summary) -> f64 {
    (load.width * u32::try_from(load.buckets.len()).unwrap_or(u32::MAX))
        .max(Duration::from_secs(1))
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round() {
        assert_eq!(nice_ceiling(40.0), 50.0);
        assert_eq!(nice_ceiling(1.0), 2.0);
        assert_eq!(nice_ceiling(99.0), 200.0);
        assert_eq!(time_step(60.0), 5.0);
    }

    #[test]
    fn marks_keep_their_order_and_do_not_overlap() {
        let places = spread(vec![100.0, 101.0, 102.0, 959.0]);
        assert!(
            places.windows(2).all(|p| p[1] - p[0] >= 2.0 * MARK),
            "{places:?}"
        );
        assert!(places.iter().all(|p| *p < WIDTH), "{places:?}");
        let many = spread((0..200).map(f64::from).collect());
        assert!(many.windows(2).all(|p| p[1] > p[0]));
        assert!(many.iter().all(|p| (0.0..WIDTH).contains(p)), "{many:?}");
    }

    #[test]
    fn one_failure_among_thousands_is_visible() {
        let mut buckets = vec![
            Bucket {
                ok: 500,
                ..Bucket::default()
            };
            100
        ];
        buckets[50].server_error = 1;
        let load = Summary {
            buckets,
            ..Summary::empty()
        };
        let svg = timeline(&load, &[], None, 10.0, "t");
        let rect = svg
            .split("<rect ")
            .find(|r| r.contains("server"))
            .expect("drawn");
        assert!(rect.contains(r#"height="2.0""#), "{rect}");
    }
}

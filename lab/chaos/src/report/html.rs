//! The page: a verdict at a glance, a table of all experiments, then one section each.

use std::fmt::Write as _;

use super::{Environment, escape, svg};
use crate::model::{Outcome, ProbeResult, Verdict};

const STYLE: &str = include_str!("style.css");

/// The report as one HTML document.
pub fn html(outcomes: &[Outcome], environment: &Environment) -> String {
    let passed = outcomes
        .iter()
        .filter(|o| o.verdict == Verdict::Pass)
        .count();
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Failure experiments: {passed} of {} passed</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        outcomes.len()
    );
    header(&mut page, outcomes, passed);
    page.push_str("<main>\n");
    summary(&mut page, outcomes);
    for outcome in outcomes {
        section(&mut page, outcome);
    }
    facts(&mut page, environment);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn header(page: &mut String, outcomes: &[Outcome], passed: usize) {
    let requests: u64 = outcomes.iter().map(|o| o.requests.total).sum();
    let failed: u64 = outcomes.iter().map(|o| o.requests.failed).sum();
    let seconds: f64 = outcomes.iter().map(|o| o.seconds).sum();
    let when = outcomes
        .first()
        .map(|o| o.started_at.strftime("%Y-%m-%d %H:%M UTC").to_string());
    let all = passed == outcomes.len() && !outcomes.is_empty();
    let _ = write!(
        page,
        "<header class=\"{}\">\n<p class=\"kicker\">Mesozoic failure experiments</p>\n<h1>{}</h1>\n\
         <p class=\"sub\">Components of the control plane were taken away under steady load; this is what the mesh did.{}</p>\n<dl class=\"tiles\">\n",
        if all { "good" } else { "bad" },
        match (all, passed) {
            (true, 1) => "The experiment passed".to_owned(),
            (true, n) => format!("All {n} experiments passed"),
            (false, n) => format!("{n} of {} experiments passed", outcomes.len()),
        },
        when.map_or(String::new(), |w| format!(" Run on {w}.")),
    );
    for (name, value) in [
        ("requests sent", thousands(requests)),
        ("requests failed", thousands(failed)),
        ("slowest recovery", slowest(outcomes)),
        ("duration", format!("{seconds:.0} s")),
    ] {
        let _ = writeln!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    page.push_str("</dl>\n</header>\n");
}

fn slowest(outcomes: &[Outcome]) -> String {
    let worst = outcomes
        .iter()
        .filter_map(|o| o.recovery_seconds)
        .fold(f64::NAN, f64::max);
    match worst.is_nan() {
        true => "–".to_owned(),
        false => format!("{worst:.1} s"),
    }
}

fn summary(page: &mut String, outcomes: &[Outcome]) {
    page.push_str(
        "<section>\n<h2>Summary</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>Experiment</th><th>What was done</th>\
         <th>Verdict</th><th class=\"num\">Probes</th><th class=\"num\">Requests</th><th class=\"num\">Failed</th>\
         <th class=\"num\">p50 / p99</th><th class=\"num\">Recovery</th></tr></thead>\n<tbody>\n",
    );
    for outcome in outcomes {
        let passed = outcome
            .probes
            .iter()
            .filter(|p| p.verdict == Verdict::Pass)
            .count();
        let _ = writeln!(
            page,
            "<tr><td><a href=\"#{0}\">{0}</a></td><td>{1} <code>{2}</code></td><td>{3}</td><td class=\"num\">{passed}/{4}</td>\
             <td class=\"num\">{5}</td><td class=\"num\">{6}</td><td class=\"num\">{7:.0} / {8:.0} ms</td><td class=\"num\">{9}</td></tr>",
            escape(outcome.name),
            escape(&outcome.action),
            escape(&outcome.target),
            badge(outcome.verdict),
            outcome.probes.len(),
            thousands(outcome.requests.total),
            thousands(outcome.requests.failed),
            outcome.requests.p50_ms,
            outcome.requests.p99_ms,
            outcome
                .recovery_seconds
                .map_or("–".to_owned(), |s| format!("{s:.1} s")),
        );
    }
    page.push_str("</tbody>\n</table></div>\n</section>\n");
}

fn section(page: &mut String, outcome: &Outcome) {
    let _ = write!(
        page,
        "<section id=\"{0}\" class=\"experiment\">\n<h2>{0} {1}</h2>\n<p class=\"lead\">{2}</p>\n",
        escape(outcome.name),
        badge(outcome.verdict),
        escape(outcome.summary)
    );
    if let Some(error) = &outcome.error {
        let _ = writeln!(page, "<p class=\"problem\">{}</p>", escape(error));
    }
    let span = outcome.seconds.max(svg::length(&outcome.load));
    let title = format!(
        "{}: {} requests over {:.0} seconds, {} failed",
        outcome.name, outcome.requests.total, outcome.seconds, outcome.requests.failed
    );
    let _ = write!(
        page,
        "<figure>\n<div class=\"scroll\">{}</div>\n<figcaption>{}</figcaption>\n</figure>\n",
        svg::timeline(
            &outcome.load,
            &outcome.timeline,
            outcome.fault,
            span,
            &title
        ),
        legend(outcome)
    );
    page.push_str("<h3>Expected and seen</h3>\n<div class=\"scroll\"><table class=\"probes\">\n<thead><tr><th>Probe</th><th>Expected</th><th>Seen</th><th>Verdict</th></tr></thead>\n<tbody>\n");
    for probe in &outcome.probes {
        probe_row(page, probe);
    }
    page.push_str("</tbody>\n</table></div>\n<h3>Timeline</h3>\n<ol class=\"events\">\n");
    for event in &outcome.timeline {
        let _ = writeln!(
            page,
            "<li><time>{:.1} s</time> {}</li>",
            event.t,
            escape(&event.event)
        );
    }
    page.push_str("</ol>\n");
    failures(page, outcome);
    page.push_str("</section>\n");
}

fn legend(outcome: &Outcome) -> String {
    let sums = outcome.load.buckets.iter().fold([0u64; 5], |mut sums, b| {
        for (sum, n) in sums.iter_mut().zip([
            b.ok,
            b.degraded,
            b.client_error,
            b.server_error,
            b.transport,
        ]) {
            *sum += u64::from(n);
        }
        sums
    });
    let entries = [
        ("ok", "answered"),
        ("degraded", "answered with a part missing"),
        ("client", "4xx"),
        ("server", "5xx"),
        ("broken", "refused, broken or timed out"),
    ];
    let mut text = String::new();
    for ((class, name), sum) in entries.into_iter().zip(sums) {
        let _ = write!(
            text,
            "<span class=\"key\"><i class=\"{class}\"></i>{name} <b>{}</b></span>",
            thousands(sum)
        );
    }
    if outcome.fault.is_some() {
        text.push_str("<span class=\"key\"><i class=\"fault\"></i>fault holds</span>");
    }
    text.push_str(
        "<span class=\"key\"><i class=\"dot\"></i>event, numbered as in the timeline</span>",
    );
    text
}

fn probe_row(page: &mut String, probe: &ProbeResult) {
    let _ = writeln!(
        page,
        "<tr><td><strong>{}</strong><br><span class=\"mode\">{}</span></td><td>{}</td><td>{}</td><td>{}</td></tr>",
        escape(probe.name),
        probe.mode,
        escape(&probe.expected),
        escape(&probe.observed),
        badge(probe.verdict)
    );
}

fn failures(page: &mut String, outcome: &Outcome) {
    let failures = &outcome.load.failures;
    if failures.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<details open>\n<summary>The first {} failed requests</summary>\n<ul class=\"failures\">",
        failures.len()
    );
    for failure in failures {
        let _ = writeln!(
            page,
            "<li><time>{:.1} s</time> <code>{}</code> {}</li>",
            failure.t,
            escape(&failure.path),
            escape(&failure.message)
        );
    }
    page.push_str("</ul>\n</details>\n");
}

fn facts(page: &mut String, environment: &Environment) {
    page.push_str("<section>\n<h2>Environment</h2>\n<dl class=\"facts\">\n");
    for (name, value) in &environment.facts {
        let _ = writeln!(
            page,
            "<div><dt>{}</dt><dd>{}</dd></div>",
            escape(name),
            escape(value)
        );
    }
    page.push_str("</dl>\n</section>\n");
}

fn badge(verdict: Verdict) -> String {
    let class = match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Stopped => "stopped",
    };
    format!("<span class=\"badge {class}\">{verdict}</span>")
}

/// `12 345`, with a thin space that does not break.
fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

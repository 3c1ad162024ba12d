//! Tables for people: measured beside the goal.

/// One row.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: Option<f64>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            measured,
            unit,
            goal: None,
        }
    }

    /// At most this much.
    pub(crate) fn goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    fn verdict(&self) -> &'static str {
        match self.goal {
            None => "",
            Some(goal) if self.measured <= goal => "reached",
            Some(_) => "missed",
        }
    }
}

/// Lays rows out in columns.
pub(crate) fn render(title: &str, rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.what.chars().count())
        .max()
        .unwrap_or(0)
        .max(4);
    let number = |value: f64| match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    };
    let mut out = format!(
        "{title}\n{:width$}  {:>12}  {:>12}\n",
        "", "measured", "goal"
    );
    for row in rows {
        let measured = format!("{} {}", number(row.measured), row.unit);
        let goal = row
            .goal
            .map(|goal| format!("≤ {} {}", number(goal), row.unit))
            .unwrap_or_default();
        let line = format!(
            "{:width$}  {measured:>12}  {goal:>12}  {}",
            row.what,
            row.verdict()
        );
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_or_missed() {
        let rows = [
            Row::new("first config", 0.25, "s").goal(0.4),
            Row::new("memory", 120.0, "MB").goal(90.0),
            Row::new("rate", 5.5, "/s"),
        ];
        let text = render("Pilot", &rows);
        assert!(
            text.contains("first config       0.250 s     ≤ 0.400 s  reached"),
            "{text}"
        );
        assert!(text.contains("120 MB") && text.contains("missed"), "{text}");
        assert!(
            text.lines()
                .last()
                .is_some_and(|line| line.ends_with("5.50 /s")),
            "{text}"
        );
    }
}

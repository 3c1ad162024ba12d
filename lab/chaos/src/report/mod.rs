//! What was found, for people: one self-contained page. (Programs read the JSON of [`crate::Outcome`].)
//!
//! The page has no script and loads nothing; its pictures are inline SVG. Every text that came from outside (pod names,
//! error messages, answers of the mesh) goes through `escape`.

mod html;
mod svg;

pub use html::html;

/// What the experiments ran on: name and value, in the order to show.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The facts.
    pub facts: Vec<(String, String)>,
}

/// Seconds in words: `0.4 s`, `12 s`.
pub fn seconds(duration: std::time::Duration) -> String {
    let value = duration.as_secs_f64();
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0} s")
    } else {
        format!("{value:.1} s")
    }
}

/// Text that is safe inside HTML elements and quoted attributes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Control characters are not allowed in HTML, and terminals' escape sequences say nothing here.
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests;

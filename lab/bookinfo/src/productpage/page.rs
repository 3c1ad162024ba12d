//! The HTML. Everything that comes from a backend or a user is escaped.

use std::fmt::Write as _;

use serde_json::Value;

use crate::upstream::CallError;

pub(super) const DESCRIPTION: &str = "An early comedy of William Shakespeare: two pairs of twins, separated at birth in a \
    shipwreck, find themselves in the same town on the same day. Whatever can be mistaken for something else, is.";

const STYLE: &str = include_str!("style.css");

/// What the page shows.
pub(super) struct Product<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) details: &'a Result<Value, CallError>,
    pub(super) reviews: &'a Result<Value, CallError>,
    pub(super) replica: &'a str,
}

pub(super) fn index() -> String {
    document(
        "Bookinfo",
        "<section class=\"hero\"><h1>Bookinfo</h1><p>A sample application of four services, in four languages once, in one \
         binary here.</p><p><a class=\"button\" href=\"/productpage\">Show the book</a></p></section>\
         <section><h2>The API behind the page</h2><ul class=\"links\">\
         <li><a href=\"/api/v1/products\">/api/v1/products</a></li>\
         <li><a href=\"/api/v1/products/0\">/api/v1/products/0</a></li>\
         <li><a href=\"/api/v1/products/0/reviews\">/api/v1/products/0/reviews</a></li>\
         <li><a href=\"/api/v1/products/0/ratings\">/api/v1/products/0/ratings</a></li></ul></section>",
    )
}

pub(super) fn product(product: &Product<'_>) -> String {
    let mut body = String::with_capacity(4096);
    // Writing to a String cannot fail.
    let _ = write!(
        body,
        "<nav><a href=\"/\">Bookinfo</a><span class=\"spacer\"></span>{}</nav>\
         <section class=\"hero\"><h1>The Comedy of Errors</h1><p>{DESCRIPTION}</p></section>\
         <div class=\"columns\"><section><h2>Book details</h2>{}</section>\
         <section><h2>Book reviews</h2>{}</section></div>\
         <footer>productpage: <code>{}</code></footer>",
        session(product.user),
        details(product.details),
        reviews(product.reviews),
        escape(product.replica),
    );
    document("The Comedy of Errors", &body)
}

fn session(user: Option<&str>) -> String {
    match user {
        Some(user) => format!(
            "<span class=\"user\">{}</span><form method=\"post\" action=\"/logout\"><button>Sign out</button></form>",
            escape(user)
        ),
        None => "<form method=\"post\" action=\"/login\"><input name=\"username\" placeholder=\"user name\" required \
                 pattern=\"[A-Za-z0-9._\\-]{1,64}\" aria-label=\"user name\"><button>Sign in</button></form>"
            .to_owned(),
    }
}

fn details(answer: &Result<Value, CallError>) -> String {
    let value = match answer {
        Ok(value) => value,
        Err(error) => return unavailable("details", error),
    };
    let mut rows = String::from("<dl>");
    for (label, key) in [
        ("Author", "author"),
        ("Year", "year"),
        ("Type", "type"),
        ("Pages", "pages"),
        ("Publisher", "publisher"),
        ("Language", "language"),
        ("ISBN-10", "ISBN-10"),
        ("ISBN-13", "ISBN-13"),
    ] {
        let text = match &value[key] {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let _ = write!(rows, "<dt>{label}</dt><dd>{}</dd>", escape(&text));
    }
    rows + "</dl>"
}

fn reviews(answer: &Result<Value, CallError>) -> String {
    let value = match answer {
        Ok(value) => value,
        Err(error) => return unavailable("reviews", error),
    };
    let mut out = String::new();
    for review in value["reviews"].as_array().into_iter().flatten() {
        let _ = write!(
            out,
            "<blockquote><p>{}</p><cite>{}</cite>{}</blockquote>",
            escape(review["text"].as_str().unwrap_or_default()),
            escape(review["reviewer"].as_str().unwrap_or_default()),
            stars(&review["rating"]),
        );
    }
    let _ = write!(
        out,
        "<p class=\"served\">reviews {}: <code>{}</code></p>",
        escape(value["version"].as_str().unwrap_or_default()),
        escape(value["podname"].as_str().unwrap_or_default()),
    );
    out
}

fn stars(rating: &Value) -> String {
    if let Some(count) = rating["stars"].as_u64() {
        let count = usize::try_from(count).unwrap_or(0).min(5);
        let color = match rating["color"].as_str() {
            Some("red") => "red",
            _ => "black",
        };
        return format!(
            "<p class=\"stars {color}\" aria-label=\"{count} of 5 stars\">{}<span>{}</span></p>",
            "★".repeat(count),
            "★".repeat(5 - count)
        );
    }
    match rating["error"].as_str() {
        Some(error) => format!("<p class=\"error\">{}</p>", escape(error)),
        None => String::new(),
    }
}

fn unavailable(what: &str, error: &CallError) -> String {
    format!(
        "<p class=\"error\">Sorry, product {what} are currently unavailable for this book.<br><small>{}</small></p>",
        escape(&error.to_string())
    )
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><title>{title}</title><style>{STYLE}</style></head>\
         <body><main>{body}</main></body></html>"
    )
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

//! What Envoy takes and what it refuses: checks for every text and number that comes from a user.
//!
//! Envoy refuses a whole resource for one bad field in it. Each function here says, before generation, whether a value can be
//! used; its error says what would be accepted. Rules read from Envoy 1.40's validation and tried against its binary.

/// A header name that may be matched: a token, or one of the pseudo headers.
pub fn matched_header(name: &str) -> Result<(), String> {
    let token = name.strip_prefix(':').unwrap_or(name);
    if is_token(token) {
        Ok(())
    } else {
        Err(format!(
            "{name:?} is no header name; accepted: letters, digits and !#$%&'*+-.^_`|~"
        ))
    }
}

/// A header name that may be set or removed.
pub fn changed_header(name: &str) -> Result<(), String> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(format!(
            "{name:?} cannot be changed by header operations; use rewrite.authority or rewrite.uri"
        ));
    }
    if is_token(name) {
        Ok(())
    } else {
        Err(format!(
            "{name:?} is no header name; accepted: letters, digits and !#$%&'*+-.^_`|~"
        ))
    }
}

/// A header value (also authority and path rewrites, which travel as headers).
pub fn header_value(value: &str) -> Result<(), String> {
    match value.chars().find(|c| matches!(c, '\0' | '\r' | '\n')) {
        None => Ok(()),
        Some(c) => Err(format!("{c:?} is not allowed in a header value")),
    }
}

/// A value of a header operation: `%` starts one of Envoy's commands, and means itself when doubled.
pub fn escaped_header_value(value: &str) -> String {
    value.replace('%', "%%")
}

/// The path of a certificate file. It stands in the name of a secret, where `~` separates two of them.
pub fn certificate_file(path: &str) -> Result<(), String> {
    let bad = |c: char| c == '~' || c.is_control();
    if path.is_empty() || path.len() > 1024 || path.contains(bad) {
        return Err(format!(
            "{path:?} cannot be used; accepted: a path of up to 1024 bytes without ~ and control characters"
        ));
    }
    Ok(())
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 1024
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_and_values() {
        assert!(changed_header("x-a").is_ok() && matched_header(":path").is_ok());
        for bad in ["", ":path", "Host", "a b", "ä", "a:b"] {
            assert!(changed_header(bad).is_err(), "{bad}");
        }
        assert!(header_value("a\nb").is_err());
        assert_eq!(escaped_header_value("100%"), "100%%");
    }
}

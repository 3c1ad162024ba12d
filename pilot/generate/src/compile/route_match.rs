//! `http[].match` to Envoy's route match.

use std::sync::Arc;

use proto_networking::networking::{
    HttpMatchRequest, HttpRoute as Rule, StringMatch, string_match::MatchType,
};

use super::{gateway_name, route_action::Action, virtual_service::HttpRoute};
use crate::{
    envoy::{self, matcher, regex, route, safe},
    model::Labels,
    report::Rejector,
};

/// A translated match.
#[derive(Clone, Debug)]
pub(super) struct Match {
    gateways: Vec<Arc<str>>,
    source_labels: Labels,
    port: Option<u32>,
    pub(super) catch_all: bool,
    name: String,
    route_match: route::RouteMatch,
}

impl Match {
    /// Holds for every client: no later rule can be reached.
    pub(super) fn is_unconditional(&self) -> bool {
        self.gateways.is_empty() && self.source_labels.is_empty() && self.port.is_none()
    }

    /// Joins match and action to a route.
    pub(super) fn with(self, action: &Action) -> HttpRoute {
        let mut template = action.template.clone();
        template.name = self.name;
        template.r#match = Some(self.route_match);
        HttpRoute {
            gateways: self.gateways,
            source_labels: self.source_labels,
            port: self.port,
            catch_all: self.catch_all,
            template,
            destinations: action.destinations.clone(),
            mirror: action.mirror.clone(),
        }
    }
}

/// The matches of a rule, in order. A match that cannot be expressed is left out; a rule of which none is left matches
/// nothing, which is not the same as a rule without matches.
pub(super) fn compile(
    rule: &Rule,
    path: &str,
    namespace: &str,
    rejector: &mut Rejector<'_>,
) -> Vec<Match> {
    if rule.r#match.is_empty() {
        return vec![Match {
            gateways: Vec::new(),
            source_labels: Labels::new(),
            port: None,
            catch_all: true,
            name: rule.name.clone(),
            route_match: prefix("/"),
        }];
    }
    let mut out = Vec::with_capacity(rule.r#match.len());
    for (i, m) in rule.r#match.iter().enumerate() {
        let path = format!("{path}.match[{i}]");
        let Ok(route_match) = request(m, &path, rejector) else {
            continue;
        };
        let catch_all = route_match.headers.is_empty()
            && route_match.query_parameters.is_empty()
            && matches!(&route_match.path_specifier, Some(route::route_match::PathSpecifier::Prefix(p)) if p == "/");
        let compiled = Match {
            gateways: m
                .gateways
                .iter()
                .map(|g| gateway_name(g, namespace))
                .collect(),
            source_labels: m.source_labels.clone(),
            port: (m.port != 0).then_some(m.port),
            catch_all,
            name: match (rule.name.is_empty(), m.name.is_empty()) {
                (false, false) => format!("{}.{}", rule.name, m.name),
                _ => rule.name.clone(),
            },
            route_match,
        };
        let ends = catch_all && compiled.is_unconditional();
        out.push(compiled);
        if ends {
            break;
        }
    }
    out
}

/// The refused field has been written down.
struct Refused;

fn prefix(text: &str) -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix(text.to_owned())),
        ..Default::default()
    }
}

fn request(
    m: &HttpMatchRequest,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Result<route::RouteMatch, Refused> {
    let mut out = uri(m, path, rejector)?;
    for (name, value) in &m.headers {
        let field = format!("{path}.headers[{name}]");
        if let Err(reason) = safe::matched_header(name) {
            rejector.reject(field, reason, "the match is left out");
            return Err(Refused);
        }
        out.headers.push(header(name, value, &field, rejector)?);
    }
    let pseudo = [
        (":method", &m.method, "method"),
        (":authority", &m.authority, "authority"),
        (":scheme", &m.scheme, "scheme"),
    ];
    for (name, value, field) in pseudo {
        if let Some(value) = value {
            out.headers
                .push(header(name, value, &format!("{path}.{field}"), rejector)?);
        }
    }
    for (name, value) in &m.query_params {
        out.query_parameters.push(query(
            name,
            value,
            &format!("{path}.queryParams[{name}]"),
            rejector,
        )?);
    }
    Ok(out)
}

fn uri(
    m: &HttpMatchRequest,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Result<route::RouteMatch, Refused> {
    use route::route_match::PathSpecifier;
    let specifier = match m.uri.as_ref().and_then(|u| u.match_type.as_ref()) {
        None => PathSpecifier::Prefix("/".to_owned()),
        Some(MatchType::Exact(text)) => PathSpecifier::Path(text.clone()),
        Some(MatchType::Prefix(text)) => PathSpecifier::Prefix(text.clone()),
        Some(MatchType::Regex(text)) if text == "*" => PathSpecifier::Prefix("/".to_owned()),
        Some(MatchType::Regex(text)) => {
            PathSpecifier::SafeRegex(expression(text, &format!("{path}.uri.regex"), rejector)?)
        }
    };
    let is_regex = matches!(specifier, PathSpecifier::SafeRegex(_));
    Ok(route::RouteMatch {
        path_specifier: Some(specifier),
        case_sensitive: if m.ignore_uri_case && !is_regex {
            envoy::boolean(false)
        } else {
            None
        },
        ..Default::default()
    })
}

fn header(
    name: &str,
    value: &StringMatch,
    field: &str,
    rejector: &mut Rejector<'_>,
) -> Result<route::HeaderMatcher, Refused> {
    use route::header_matcher::HeaderMatchSpecifier::{PresentMatch, StringMatch as Text};
    let specifier = match string(value, field, rejector)? {
        Some(text) => Text(text),
        None => PresentMatch(true),
    };
    Ok(route::HeaderMatcher {
        name: name.to_ascii_lowercase(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    })
}

fn query(
    name: &str,
    value: &StringMatch,
    field: &str,
    rejector: &mut Rejector<'_>,
) -> Result<route::QueryParameterMatcher, Refused> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier::{
        PresentMatch, StringMatch as Text,
    };
    if name.is_empty() || name.len() > 1024 {
        rejector.reject(
            field,
            "a query parameter needs a name of 1 to 1024 bytes",
            "the match is left out",
        );
        return Err(Refused);
    }
    let specifier = match string(value, field, rejector)? {
        // A prefix was never evaluated for query parameters: presence is what 1.4 gives.
        Some(text) if !matches!(value.match_type, Some(MatchType::Prefix(_))) => Text(text),
        _ => PresentMatch(true),
    };
    Ok(route::QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(specifier),
    })
}

/// `None`: no kind is set, which asks for presence only.
fn string(
    value: &StringMatch,
    field: &str,
    rejector: &mut Rejector<'_>,
) -> Result<Option<matcher::StringMatcher>, Refused> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match &value.match_type {
        None => return Ok(None),
        Some(MatchType::Exact(text)) => MatchPattern::Exact(text.clone()),
        Some(MatchType::Prefix(text)) if text.is_empty() => {
            let reason = "an empty prefix is refused by Envoy; accepted: some text, or nothing at all for presence";
            rejector.reject(format!("{field}.prefix"), reason, "the match is left out");
            return Err(Refused);
        }
        Some(MatchType::Prefix(text)) => MatchPattern::Prefix(text.clone()),
        Some(MatchType::Regex(text)) if text == "*" => return Ok(None),
        Some(MatchType::Regex(text)) => {
            MatchPattern::SafeRegex(expression(text, &format!("{field}.regex"), rejector)?)
        }
    };
    Ok(Some(matcher::StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    }))
}

fn expression(
    text: &str,
    field: &str,
    rejector: &mut Rejector<'_>,
) -> Result<matcher::RegexMatcher, Refused> {
    regex::matcher(text).map_err(|reason| {
        rejector.reject(field, reason, "the match is left out");
        Refused
    })
}

//! Requests that are answered and not stored: TokenRequest, TokenReview, access reviews.

use axum::response::Response;
use serde_json::{Value, json};

use super::rbac;
use super::tokens::{ISSUER, TokenFor};
use super::{Identity, MASTERS};
use crate::json;
use crate::rest::{Context, body};
use crate::status::{ApiError, FieldError, Result};

const MIN_TOKEN_SECONDS: i64 = 600;
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// `POST` to a resource that only knows create.
pub(crate) async fn create(context: &Context, bytes: &[u8]) -> Result<Response> {
    let decoded = body::decode(&context.content_type, bytes, &context.resource.kind)?;
    let mut review = body::object(context, decoded)?;
    let status = match context.resource.plural.as_str() {
        "tokenreviews" => token_review(context, &review)?,
        "selfsubjectreviews" => json!({"userInfo": context.identity.info()}),
        "selfsubjectrulesreviews" => rules_review(context, &review),
        "selfsubjectaccessreviews" => access(context, &review, &context.identity),
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            access(context, &review, &subject(&review))
        }
        "bindings" => {
            // The old form of pods/NAME/binding.
            let name = json::str_at(&review, &["metadata", "name"]).to_owned();
            return Err(ApiError::bad_request(format!(
                "post the binding to pods/{name}/binding"
            )));
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    json::set(&mut review, &["status"], status);
    let metadata = json::map_mut(&mut review, &["metadata"]);
    metadata.entry("creationTimestamp").or_insert(Value::Null);
    Ok(context.value_response(201, &review))
}

/// `POST serviceaccounts/NAME/token`.
pub(crate) async fn token_request(context: &Context, bytes: &[u8]) -> Result<Response> {
    let mut request = body::decode(&context.content_type, bytes, "TokenRequest")?.value;
    let name = context.name()?;
    let namespace = context.namespace.as_str();
    let store = &context.server.store;
    let account = store
        .collection("serviceaccounts")
        .get(namespace, name)
        .ok_or_else(|| ApiError::not_found(&context.resource, name))?;
    let seconds =
        json::int_at(&request, &["spec", "expirationSeconds"]).unwrap_or(DEFAULT_TOKEN_SECONDS);
    if seconds < MIN_TOKEN_SECONDS {
        let error = FieldError::invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        );
        return Err(ApiError::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            name,
            &[error],
        ));
    }
    let audiences: Vec<String> = json::list_at(&request, &["spec", "audiences"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let bound = |key: &str| json::str_at(&request, &["spec", "boundObjectRef", key]).to_owned();
    let (kind, pod_name, pod_uid) = (bound("kind"), bound("name"), bound("uid"));
    let pod = match kind.as_str() {
        "" => None,
        "Pod" => {
            let pod = store
                .collection("pods")
                .get(namespace, &pod_name)
                .ok_or_else(|| {
                    ApiError::new(404, "NotFound", format!("pods \"{pod_name}\" not found"))
                        .with_details(json!({"name": pod_name, "kind": "pods"}))
                })?;
            if !pod_uid.is_empty() && pod_uid != pod.uid() {
                return Err(ApiError::conflict(
                    &context.resource,
                    name,
                    &format!(
                        "the UID in the bound object reference ({pod_uid}) does not match the UID in record. The object might have been deleted and then recreated"
                    ),
                ));
            }
            Some(pod)
        }
        "Secret" => None,
        other => {
            let error = FieldError::unsupported(
                "spec.boundObjectRef.kind",
                &other.into(),
                &["Pod", "Secret"],
            );
            return Err(ApiError::invalid(
                "authentication.k8s.io",
                "TokenRequest",
                name,
                &[error],
            ));
        }
    };
    let node = pod.as_ref().and_then(|p| {
        store
            .collection("nodes")
            .get("", json::str_at(&p.value, &["spec", "nodeName"]))
    });
    let wanted = TokenFor {
        namespace,
        account: name,
        account_uid: account.uid(),
        pod: pod.as_ref().map(|p| (p.name.as_str(), p.uid())),
        node: node.as_ref().map(|n| (n.name.as_str(), n.uid())),
        audiences: audiences.clone(),
        seconds,
    };
    let (token, expiry) = context
        .server
        .tokens
        .issue(&context.server.pki.token_key, &wanted)
        .map_err(ApiError::internal)?;
    let expires = jiff::Timestamp::from_second(expiry).map_err(ApiError::internal)?;
    json::set(&mut request, &["kind"], "TokenRequest".into());
    json::set(
        &mut request,
        &["apiVersion"],
        "authentication.k8s.io/v1".into(),
    );
    json::set(&mut request, &["metadata", "name"], name.into());
    json::set(&mut request, &["metadata", "namespace"], namespace.into());
    json::set(
        &mut request,
        &["metadata", "creationTimestamp"],
        json::now().into(),
    );
    json::set(&mut request, &["spec", "expirationSeconds"], seconds.into());
    if audiences.is_empty() {
        json::set(&mut request, &["spec", "audiences"], json!([ISSUER]));
    }
    json::set(
        &mut request,
        &["status"],
        json!({"token": token, "expirationTimestamp": expires.to_string()}),
    );
    Ok(context.value_response(201, &request))
}

fn token_review(context: &Context, review: &Value) -> Result<Value> {
    let token = json::str_at(review, &["spec", "token"]);
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<String> = json::list_at(review, &["spec", "audiences"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    Ok(
        match context
            .server
            .tokens
            .verify(&context.server, token, &audiences)
        {
            Ok(verified) => {
                json!({"authenticated": true, "user": verified.identity.info(), "audiences": verified.audiences})
            }
            Err(why) => json!({"user": {}, "error": why}),
        },
    )
}

fn subject(review: &Value) -> Identity {
    let strings = |key: &str| -> Vec<String> {
        json::list_at(review, &["spec", key])
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    Identity {
        user: json::str_at(review, &["spec", "user"]).to_owned(),
        uid: json::str_at(review, &["spec", "uid"]).to_owned(),
        groups: strings("groups"),
        extra: Vec::new(),
    }
}

fn access(context: &Context, review: &Value, identity: &Identity) -> Value {
    let allowed = match json::at(review, &["spec", "resourceAttributes"]) {
        Some(attributes) => {
            let text = |key| json::str_at(attributes, &[key]);
            let resource = match text("subresource") {
                "" => text("resource").to_owned(),
                sub => format!("{}/{sub}", text("resource")),
            };
            let request = rbac::Request {
                verb: text("verb"),
                group: text("group"),
                resource: &resource,
                namespace: text("namespace"),
                name: text("name"),
            };
            rbac::allowed(&context.server, identity, &request)
        }
        // Paths without resources: discovery is open to all users.
        None => !identity.is_anonymous(),
    };
    let mut status = json!({"allowed": allowed});
    if identity.is_master() && allowed {
        status["reason"] = format!("member of {MASTERS}").into();
    }
    status
}

fn rules_review(context: &Context, review: &Value) -> Value {
    let namespace = json::str_at(review, &["spec", "namespace"]);
    let mut resource = Vec::new();
    let mut other = vec![
        json!({"verbs": ["get"], "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"]}),
    ];
    if context.identity.is_master() {
        resource.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        other.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    resource.push(json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]}));
    resource.push(json!({"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]}));
    for rule in rbac::rules(&context.server, &context.identity, namespace) {
        if rule.get("nonResourceURLs").is_some() {
            other.push(rule);
        } else {
            resource.push(rule);
        }
    }
    json!({"incomplete": false, "resourceRules": resource, "nonResourceRules": other})
}

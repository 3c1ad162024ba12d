//! What a webhook's answer must look like, and what it means.

use base64::Engine;
use serde_json::Value;

use crate::json;
use crate::status::ApiError;

/// Why there is no usable answer. The texts are what users of the original see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Before or instead of an HTTP answer: `failed to call webhook: …`.
    Call(String),
    /// An answer that breaks the contract, or no client for the configuration.
    Invalid(String),
}

impl Failure {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Call(why) => format!("failed to call webhook: {why}"),
            Self::Invalid(why) => why.clone(),
        }
    }
}

/// A valid answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    allowed: bool,
    status: Value,
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
}

impl Answer {
    /// The refusal, if it is one.
    pub(super) fn denied(&self, name: &str) -> Option<ApiError> {
        if self.allowed {
            return None;
        }
        let (message, reason) = (
            json::str_at(&self.status, &["message"]),
            json::str_at(&self.status, &["reason"]),
        );
        let by = format!("admission webhook \"{name}\" denied the request");
        let text = match (message, reason) {
            ("", "") => format!("{by} without explanation"),
            ("", reason) => format!("{by}: {reason}"),
            (message, _) => format!("{by}: {message}"),
        };
        let code = json::int_at(&self.status, &["code"])
            .and_then(|c| u16::try_from(c).ok())
            .filter(|c| (400..600).contains(c));
        let error = ApiError::new(code.unwrap_or(403), reason, text);
        Some(match self.status.get("details") {
            Some(details) => error.with_details(details.clone()),
            None => error,
        })
    }
}

/// Reads an AdmissionReview answering the request `uid` in `version`.
pub(super) fn read(body: &[u8], uid: &str, version: &str) -> Result<Answer, Failure> {
    let invalid =
        |why: String| Failure::Invalid(format!("received invalid webhook response: {why}"));
    let review: Value = serde_json::from_slice(body)
        .map_err(|e| Failure::Call(format!("couldn't get version/kind; json parse error: {e}")))?;
    let (api_version, kind) = (
        json::str_at(&review, &["apiVersion"]),
        json::str_at(&review, &["kind"]),
    );
    let wanted = format!("admission.k8s.io/{version}");
    if let Some(other) = api_version
        .strip_prefix("admission.k8s.io/")
        .filter(|o| *o != version && kind == "AdmissionReview")
    {
        return Err(Failure::Call(format!(
            "converting ({other}.AdmissionReview) to ({version}.AdmissionReview): unknown conversion"
        )));
    }
    let untyped = api_version.is_empty() && kind.is_empty();
    if (version == "v1" || !untyped) && (api_version != wanted || kind != "AdmissionReview") {
        return Err(invalid(format!(
            "expected webhook response of {wanted}, Kind=AdmissionReview, got {}, Kind={kind}",
            if api_version.is_empty() {
                "/"
            } else {
                api_version
            }
        )));
    }
    let Some(response) = review.get("response").filter(|r| !r.is_null()) else {
        return Err(invalid("webhook response was absent".to_owned()));
    };
    let echoed = json::str_at(response, &["uid"]);
    if version == "v1" && echoed != uid {
        return Err(invalid(format!(
            "expected response.uid=\"{uid}\", got \"{echoed}\""
        )));
    }
    Ok(Answer {
        allowed: response["allowed"] == true,
        status: response.get("status").cloned().unwrap_or(Value::Null),
        patch: patch(response, version).map_err(invalid)?,
        warnings: json::list_at(response, &["warnings"])
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    })
}

fn patch(response: &Value, version: &str) -> Result<Option<Value>, String> {
    let encoded = json::str_at(response, &["patch"]);
    let kind = json::str_at(response, &["patchType"]);
    if encoded.is_empty() {
        return match kind {
            "" => Ok(None),
            _ => Err("webhook returned response.patchType but not response.patch".to_owned()),
        };
    }
    match (kind, version) {
        ("JSONPatch", _) | ("", "v1beta1") => {}
        ("", _) => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        (other, _) => {
            return Err(format!(
                "invalid value of response.patchType \"{other}\", expected \"JSONPatch\""
            ));
        }
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|e| format!("response.patch is not base64: {e}"))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| format!("response.patch is not JSON: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn v1(response: Value) -> Result<Answer, Failure> {
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}).to_string();
        read(body.as_bytes(), "u", "v1")
    }

    #[test]
    fn the_contract_is_checked() {
        assert!(
            v1(json!({"uid": "u", "allowed": true}))
                .unwrap()
                .denied("x")
                .is_none()
        );
        assert_eq!(
            v1(json!({"uid": "", "allowed": true})).unwrap_err().text(),
            "received invalid webhook response: expected response.uid=\"u\", got \"\""
        );
        assert_eq!(
            v1(Value::Null).unwrap_err().text(),
            "received invalid webhook response: webhook response was absent"
        );
        assert_eq!(
            v1(json!({"uid": "u", "allowed": true, "patch": "W10="}))
                .unwrap_err()
                .text(),
            "received invalid webhook response: webhook returned response.patch but not response.patchType"
        );
        let untyped = json!({"response": {"allowed": true}}).to_string();
        assert!(read(untyped.as_bytes(), "u", "v1beta1").is_ok());
        assert_eq!(
            read(untyped.as_bytes(), "u", "v1").unwrap_err().text(),
            "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind="
        );
        let beta = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {}}).to_string();
        assert_eq!(
            read(beta.as_bytes(), "u", "v1").unwrap_err().text(),
            "failed to call webhook: converting (v1beta1.AdmissionReview) to (v1.AdmissionReview): unknown conversion"
        );
    }

    #[test]
    fn denials() {
        let denied = v1(
            json!({"uid": "u", "allowed": false, "status": {"message": "no way", "code": 409, "reason": "Conflict"}}),
        );
        let error = denied.unwrap().denied("x.y.z").unwrap();
        assert_eq!(
            (error.code(), error.message()),
            (
                409,
                "admission webhook \"x.y.z\" denied the request: no way"
            )
        );
        let error = v1(json!({"uid": "u", "allowed": false}))
            .unwrap()
            .denied("x")
            .unwrap();
        assert_eq!(
            (error.code(), error.message()),
            (
                403,
                "admission webhook \"x\" denied the request without explanation"
            )
        );
    }
}

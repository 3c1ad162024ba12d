//! `pods/NAME/eviction`: a deletion that asks the disruption budgets first.

use axum::response::Response;
use serde_json::{Value, json};

use super::{Context, body, delete, read};
use crate::json;
use crate::selector::Labels;
use crate::status::{ApiError, Result};

pub(super) async fn evict(context: &Context, bytes: &[u8]) -> Result<Response> {
    let eviction = body::decode(&context.content_type, bytes, "Eviction")?.value;
    let pod = read::find(context)?;
    let running = !matches!(
        json::str_at(&pod.value, &["status", "phase"]),
        "Succeeded" | "Failed"
    );
    if running {
        ask_budgets(context, &pod.value)?;
    }
    let options = eviction
        .get("deleteOptions")
        .cloned()
        .unwrap_or_else(|| json!({}));
    delete::with_options(context, options).await?;
    Ok(context.value_response(201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})))
}

fn ask_budgets(context: &Context, pod: &Value) -> Result<()> {
    let budgets = context
        .server
        .store
        .collection("poddisruptionbudgets.policy");
    for budget in budgets.list(Some(&context.namespace), 0).0 {
        let selector = budget.value.get("spec").and_then(|s| s.get("selector"));
        let Some(selector) = selector else { continue };
        if !Labels::from_object(selector)?.matches_object(pod) {
            continue;
        }
        let allowed = json::int_at(&budget.value, &["status", "disruptionsAllowed"]).unwrap_or(0);
        if allowed <= 0 {
            let number = |key| json::int_at(&budget.value, &["status", key]).unwrap_or(0);
            let message = format!(
                "The disruption budget {} needs {} healthy pods and has {} currently",
                budget.name,
                number("desiredHealthy"),
                number("currentHealthy")
            );
            return Err(ApiError::new(
                429,
                "TooManyRequests",
                "Cannot evict pod as it would violate the pod's disruption budget.",
            )
            .with_details(
                json!({"causes": [{"reason": "DisruptionBudget", "message": message}]}),
            ));
        }
    }
    Ok(())
}

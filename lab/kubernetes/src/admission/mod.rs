//! Admission webhooks: which ones a request concerns, in which order they are asked, and what their
//! answers do. The built-in plugins (service accounts, tolerations) live with the defaults.
//!
//! Mutating webhooks run one after the other in order of configuration name and list position, each
//! seeing the result of its predecessors; those with `reinvocationPolicy: IfNeeded` run once more if a
//! later one changed the object. Validating webhooks run in parallel on the final object.

mod answer;
mod call;
mod matching;

use std::sync::Arc;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::convert;
use crate::json;
use crate::patch::json_patch;
use crate::rest::Context;
use crate::status::{ApiError, Result};
use answer::{Answer, Failure};
use matching::Match;

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

/// What a request does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Everything a webhook is told about, in storage form.
struct Subject<'a> {
    context: &'a Context,
    operation: Operation,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
    options: Value,
}

/// One webhook of one configuration.
struct Hook {
    config: Value,
}

fn hooks(context: &Context, collection: &str) -> Vec<Arc<Hook>> {
    // The configurations themselves are exempt: a broken webhook must not lock its owner out.
    if context.resource.group == "admissionregistration.k8s.io" {
        return Vec::new();
    }
    let collection = context.server.store.collection(collection);
    if collection.len() == 0 {
        return Vec::new();
    }
    collection
        .list(None, 0)
        .0
        .iter()
        .flat_map(|c| json::list_at(&c.value, &["webhooks"]).to_vec())
        .map(|config| Arc::new(Hook { config }))
        .collect()
}

/// Options of the request as the review shows them.
fn options(context: &Context, operation: Operation) -> Value {
    let kind = match operation {
        Operation::Create => "CreateOptions",
        _ => "UpdateOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if context.options.get("dryRun").is_some() {
        options["dryRun"] = json!(["All"]);
    }
    for key in ["fieldManager", "fieldValidation"] {
        if let Some(value) = context.options.get(key) {
            options[key] = value.into();
        }
    }
    options
}

/// Runs the mutating webhooks; gives back the object as they leave it.
pub(crate) async fn mutate(
    context: &Context,
    operation: Operation,
    object: Option<Value>,
    old: Option<&Value>,
) -> Result<Option<Value>> {
    let hooks = hooks(context, MUTATING);
    let Some(mut object) = object else {
        return Ok(None);
    };
    if hooks.is_empty() {
        return Ok(Some(object));
    }
    let mut again = Vec::new();
    let options = options(context, operation);
    for hook in &hooks {
        if one_mutation(context, operation, &mut object, old, &options, hook).await? {
            // Everything that ran before sees a changed object.
            again.iter_mut().for_each(|(_, stale)| *stale = true);
        }
        if json::str_at(&hook.config, &["reinvocationPolicy"]) == "IfNeeded" {
            again.push((hook, false));
        }
    }
    for (hook, _) in again.into_iter().filter(|(_, stale)| *stale) {
        one_mutation(context, operation, &mut object, old, &options, hook).await?;
    }
    Ok(Some(object))
}

/// Asks one mutating webhook; says whether it changed the object.
async fn one_mutation(
    context: &Context,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
    options: &Value,
    hook: &Hook,
) -> Result<bool> {
    let subject = Subject {
        context,
        operation,
        object: Some(object),
        old,
        options: options.clone(),
    };
    let Some(found) = matching::find(&subject, hook)? else {
        return Ok(false);
    };
    let Some(answer) = ask(&subject, hook, &found).await? else {
        return Ok(false);
    };
    let Some(patch) = answer.patch else {
        return Ok(false);
    };
    let mut shown = shown(&subject, &found, Some(object));
    let operations = json_patch::parse(&patch).map_err(ApiError::internal)?;
    json_patch::apply(&mut shown, &operations).map_err(ApiError::internal)?;
    let resource = &context.resource;
    json::strip_nulls_if(!resource.custom, &mut shown);
    if let Some(metadata) = shown.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata
            .get("creationTimestamp")
            .is_some_and(Value::is_null)
    {
        metadata.shift_remove("creationTimestamp");
    }
    if let Some(check) = resource.version(&found.version).and_then(|v| v.check) {
        let known = check(&shown).map_err(ApiError::internal)?;
        crate::typed::drop_unknown(&mut shown, &known);
    }
    let changed = convert::to_storage(resource, &found.version, shown);
    let differs = changed != *object;
    *object = changed;
    Ok(differs)
}

/// Runs the validating webhooks in parallel; the first refusal (in order) wins.
pub(crate) async fn validate(
    context: &Context,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<()> {
    let hooks = hooks(context, VALIDATING);
    if hooks.is_empty() {
        return Ok(());
    }
    let subject = Subject {
        context,
        operation,
        object,
        old,
        options: options(context, operation),
    };
    run_validation(&subject, &hooks).await
}

async fn run_validation(subject: &Subject<'_>, hooks: &[Arc<Hook>]) -> Result<()> {
    let mut calls = Vec::new();
    for hook in hooks {
        if let Some(found) = matching::find(subject, hook)? {
            calls.push(async move {
                match ask(subject, hook, &found).await? {
                    Some(answer) if answer.patch.is_some() => {
                        let why = "received invalid webhook response: validating webhook may not return response.patch";
                        fail(subject.context, hook, &Failure::Invalid(why.to_owned())).map(drop)
                    }
                    _ => Ok(()),
                }
            });
        }
    }
    join_all(calls).await.into_iter().collect()
}

/// Both kinds of webhooks for a deletion.
pub(crate) async fn delete(context: &Context, old: &Value, options: &Value) -> Result<()> {
    let subject = Subject {
        context,
        operation: Operation::Delete,
        object: None,
        old: Some(old),
        options: options.clone(),
    };
    for hook in hooks(context, MUTATING) {
        if let Some(found) = matching::find(&subject, &hook)? {
            ask(&subject, &hook, &found).await?;
        }
    }
    run_validation(&subject, &hooks(context, VALIDATING)).await
}

/// Webhooks on exec, attach and port-forward.
pub(crate) async fn connect(context: &Context, kind: &str) -> Result<()> {
    let mut object = json!({"kind": kind, "apiVersion": "v1"});
    for key in ["stdin", "stdout", "stderr", "tty"] {
        if context.options.flag(key) {
            object[key] = true.into();
        }
    }
    if let Some(container) = context.options.get("container") {
        object["container"] = container.into();
    }
    let command: Vec<&str> = context.options.all("command").collect();
    if !command.is_empty() {
        object["command"] = command.into();
    }
    let subject = Subject {
        context,
        operation: Operation::Connect,
        object: Some(&object),
        old: None,
        options: Value::Null,
    };
    for hook in hooks(context, MUTATING) {
        if let Some(found) = matching::find(&subject, &hook)? {
            ask(&subject, &hook, &found).await?;
        }
    }
    run_validation(&subject, &hooks(context, VALIDATING)).await
}

/// Calls a webhook. `None`: it could not be asked, and its policy is to let the request pass.
async fn ask(subject: &Subject<'_>, hook: &Hook, found: &Match) -> Result<Option<Answer>> {
    let context = subject.context;
    let name = json::str_at(&hook.config, &["name"]);
    let effects = json::str_at(&hook.config, &["sideEffects"]);
    if context.options.dry_run()? && !matches!(effects, "None" | "NoneOnDryRun") {
        return Err(ApiError::bad_request(format!(
            "admission webhook \"{name}\" does not support dry run"
        )));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let version = review_version(hook);
    let request = review(subject, found, &uid, version);
    let result = match call::post(&context.server, &hook.config, &request).await {
        Ok(body) => answer::read(&body, &uid, version),
        Err(failure) => Err(failure),
    };
    match result {
        Ok(answer) => {
            answer.warnings.iter().for_each(|w| context.warn(w.clone()));
            match answer.denied(name) {
                Some(error) => Err(error),
                None => Ok(Some(answer)),
            }
        }
        Err(failure) => fail(context, hook, &failure),
    }
}

/// A webhook that gave no usable answer: the request fails or passes, as its policy says.
fn fail(context: &Context, hook: &Hook, failure: &Failure) -> Result<Option<Answer>> {
    let name = json::str_at(&hook.config, &["name"]);
    let why = failure.text();
    if json::str_at(&hook.config, &["failurePolicy"]) == "Ignore" {
        tracing::warn!(
            webhook = name,
            resource = context.resource.qualified(),
            why,
            "an admission webhook could not be asked; its failure policy is Ignore, so the request passed"
        );
        return Ok(None);
    }
    Err(ApiError::internal(format!(
        "failed calling webhook \"{name}\": {why}"
    )))
}

/// The first version the webhook knows that this server knows too.
fn review_version(hook: &Hook) -> &'static str {
    json::list_at(&hook.config, &["admissionReviewVersions"])
        .iter()
        .find_map(|v| match v.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        })
        .unwrap_or("v1")
}

/// The object in the version the webhook's rules name.
fn shown(subject: &Subject<'_>, found: &Match, value: Option<&Value>) -> Value {
    match value {
        None => Value::Null,
        Some(v) if subject.operation == Operation::Connect => v.clone(),
        Some(v) => {
            let mut shown = convert::from_storage(&subject.context.resource, &found.version, v);
            if subject.operation == Operation::Create
                && let Some(metadata) = shown.get_mut("metadata").and_then(Value::as_object_mut)
            {
                metadata.entry("creationTimestamp").or_insert(Value::Null);
            }
            shown
        }
    }
}

fn review(subject: &Subject<'_>, found: &Match, uid: &str, version: &str) -> Value {
    let context = subject.context;
    let resource = &context.resource;
    let kind =
        |version: &str| json!({"group": resource.group, "version": version, "kind": resource.kind});
    let plural = |version: &str| json!({"group": resource.group, "version": version, "resource": resource.plural});
    let mut request =
        json!({"uid": uid, "kind": kind(&found.version), "resource": plural(&found.version)});
    if let Some(sub) = &context.subresource {
        request["subResource"] = sub.clone().into();
    }
    request["requestKind"] = kind(&context.version);
    request["requestResource"] = plural(&context.version);
    if let Some(sub) = &context.subresource {
        request["requestSubResource"] = sub.clone().into();
    }
    let name = context.name.clone().unwrap_or_else(|| {
        let object = subject.object.or(subject.old).unwrap_or(&Value::Null);
        let generated = !json::str_at(object, &["metadata", "generateName"]).is_empty()
            && subject.operation == Operation::Create;
        if generated {
            String::new()
        } else {
            json::str_at(object, &["metadata", "name"]).to_owned()
        }
    });
    if !name.is_empty() {
        request["name"] = name.clone().into();
    }
    if resource.namespaced {
        request["namespace"] = context.namespace.clone().into();
    } else if resource.is("", "namespaces") {
        request["namespace"] = name.into();
    }
    request["operation"] = subject.operation.name().into();
    request["userInfo"] = context.identity.info();
    request["object"] = shown(subject, found, subject.object);
    request["oldObject"] = shown(subject, found, subject.old);
    request["dryRun"] = context.options.dry_run().unwrap_or(false).into();
    request["options"] = subject.options.clone();
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request})
}

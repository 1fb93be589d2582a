//! Reads, redirects and restores one probe or lifecycle handler.

use serde_json::{Map, Value, json};

/// The field of a container in which a handler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandlerField {
    Readiness,
    Liveness,
    Startup,
    PreStop,
    PostStart,
}

impl HandlerField {
    pub(super) const ALL: [Self; 5] = [Self::Readiness, Self::Liveness, Self::Startup, Self::PreStop, Self::PostStart];

    /// Returns the name of the field, for messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Readiness => "readinessProbe",
            Self::Liveness => "livenessProbe",
            Self::Startup => "startupProbe",
            Self::PreStop => "lifecycle.preStop",
            Self::PostStart => "lifecycle.postStart",
        }
    }

    /// Returns the field of the container, and for lifecycle handlers the field in it.
    const fn fields(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::PreStop => ("lifecycle", Some("preStop")),
            Self::PostStart => ("lifecycle", Some("postStart")),
            probe => (probe.name(), None),
        }
    }

    /// Returns whether it is a probe, not a lifecycle handler.
    pub(super) const fn is_probe(self) -> bool {
        matches!(self, Self::Readiness | Self::Liveness | Self::Startup)
    }

    /// Returns the path at which the agent serves this handler of the container.
    pub(super) fn path(self, container: &str) -> String {
        let (kind, last) = match self {
            Self::Readiness => ("health", "readyz"),
            Self::Liveness => ("health", "livez"),
            Self::Startup => ("health", "startupz"),
            Self::PreStop => ("lifecycle", "prestopz"),
            Self::PostStart => ("lifecycle", "poststartz"),
        };
        format!("/app-{kind}/{container}/{last}")
    }

    pub(super) fn find(self, container: &Map<String, Value>) -> Option<&Map<String, Value>> {
        let (field, inner) = self.fields();
        let handler = container.get(field)?;
        inner.map_or(Some(handler), |inner| handler.get(inner))?.as_object()
    }

    pub(super) fn find_mut(self, container: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
        let (field, inner) = self.fields();
        let handler = container.get_mut(field)?;
        match inner {
            None => handler,
            Some(inner) => handler.get_mut(inner)?,
        }
        .as_object_mut()
    }
}

/// The network request of a handler.
#[derive(Debug, Clone)]
pub(super) struct ProbeAction {
    kind: &'static str,
    fields: Map<String, Value>,
    /// `timeoutSeconds` of the probe.
    timeout: Option<Value>,
}

impl ProbeAction {
    /// Returns the action of a handler; `None` for commands and unknown kinds. Only probes can be `grpc`.
    pub(super) fn of(handler: &Map<String, Value>, field: HandlerField) -> Option<Self> {
        let kinds: &[&'static str] =
            if field.is_probe() { &["httpGet", "tcpSocket", "grpc"] } else { &["httpGet", "tcpSocket"] };
        let (kind, fields) = kinds.iter().find_map(|kind| Some((*kind, handler.get(*kind)?.as_object()?)))?;
        let timeout = handler.get("timeoutSeconds").filter(|timeout| field.is_probe() && is_set(timeout)).cloned();
        Some(Self { kind, fields: fields.clone(), timeout })
    }

    /// Returns the path of an HTTP request.
    pub(super) fn path(&self) -> Option<&str> {
        if self.kind == "httpGet" { self.fields.get("path")?.as_str() } else { None }
    }

    /// Returns the port, if it is a number.
    pub(super) fn port(&self) -> Option<u16> {
        u16::try_from(self.fields.get("port")?.as_u64()?).ok()
    }

    /// Returns whether the request goes to a host other than the pod; the agent would send it to the pod.
    pub(super) fn targets_another_host(&self) -> bool {
        match self.fields.get("host").and_then(Value::as_str) {
            None | Some("" | "localhost" | "127.0.0.1" | "::1") => false,
            Some(_) => true,
        }
    }

    /// Returns the agent's record of the handler, with the port as a number.
    ///
    /// # Errors
    /// Returns the name of a port that the container does not have.
    pub(super) fn entry(self, container: &Map<String, Value>, field: HandlerField) -> Result<Value, String> {
        debug_assert!(field.is_probe() || self.timeout.is_none());
        let port = match self.fields.get("port") {
            Some(Value::Number(port)) => Value::Number(port.clone()),
            Some(Value::String(name)) => named_port(container, name).ok_or_else(|| name.clone())?,
            other => return Err(other.map(ToString::to_string).unwrap_or_default()),
        };
        let mut fields = self.fields;
        let order: &[&str] = match self.kind {
            "httpGet" => &["path", "port", "host", "scheme", "httpHeaders"],
            "tcpSocket" => &["port", "host"],
            _ => &["port", "service"],
        };
        let mut action = Map::new();
        for name in order {
            match (*name, fields.shift_remove(*name)) {
                ("port", _) => {
                    action.insert("port".to_owned(), port.clone());
                }
                // The agent requires the field.
                ("service", service) => {
                    action.insert("service".to_owned(), service.unwrap_or(Value::Null));
                }
                (name, Some(value)) if is_set(&value) => {
                    action.insert(name.to_owned(), value);
                }
                _ => {}
            }
        }
        // Fields that are unknown here.
        action.extend(fields);
        let mut entry = json!({self.kind: action});
        if let Some(timeout) = self.timeout {
            entry["timeoutSeconds"] = timeout;
        }
        Ok(entry)
    }

    /// Redirects a handler to the agent. An HTTP request keeps everything but path, port and scheme; others become one.
    pub(super) fn redirect(handler: &mut Map<String, Value>, path: &str, port: u16) {
        if let Some(request) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
            request.insert("path".to_owned(), path.into());
            request.insert("port".to_owned(), port.into());
            if request.get("scheme").is_some_and(|scheme| scheme == "HTTPS") {
                request.insert("scheme".to_owned(), "HTTP".into());
            }
            return;
        }
        replace_fields(handler, &["tcpSocket", "grpc"], "httpGet", json!({"path": path, "port": port}));
    }

    /// Restores a handler from the agent's record.
    pub(super) fn restore(handler: &mut Map<String, Value>, entry: &Value) {
        if let Some(original) = entry.get("httpGet").and_then(Value::as_object) {
            let Some(request) = handler.get_mut("httpGet").and_then(Value::as_object_mut) else { return };
            if !original.contains_key("path") {
                request.shift_remove("path");
            }
            // Nothing else was changed.
            let changed = original.iter().filter(|(name, _)| matches!(name.as_str(), "path" | "port" | "scheme"));
            request.extend(changed.map(|(name, value)| (name.clone(), value.clone())));
            return;
        }
        for kind in ["tcpSocket", "grpc"] {
            if let Some(original) = entry.get(kind).and_then(Value::as_object) {
                let set = original.iter().filter(|(_, value)| !value.is_null());
                let original = set.map(|(name, value)| (name.clone(), value.clone())).collect();
                return replace_fields(handler, &["httpGet"], kind, Value::Object(original));
            }
        }
    }

    /// Sets the port of a handler that is already redirected.
    pub(super) fn set_port(handler: &mut Map<String, Value>, port: u16) {
        if let Some(request) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
            request.insert("port".to_owned(), port.into());
        }
    }
}

/// Replaces fields by one, at the position of the first of them.
fn replace_fields(fields: &mut Map<String, Value>, old: &[&str], name: &str, value: Value) {
    let place = fields.keys().position(|field| old.contains(&field.as_str())).unwrap_or(fields.len());
    fields.retain(|field, _| !old.contains(&field.as_str()));
    fields.shift_insert(place.min(fields.len()), name.to_owned(), value);
}

fn named_port(container: &Map<String, Value>, name: &str) -> Option<Value> {
    let ports = container.get("ports")?.as_array()?;
    let port = ports.iter().find(|port| port["name"] == name)?.get("containerPort")?;
    port.is_u64().then(|| port.clone())
}

/// Returns whether the value is neither null nor the zero value of its type, which Kubernetes treats as absent.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_u64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

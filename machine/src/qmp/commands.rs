//! QMP's commands: one table, and the functions behind it. Error texts are QEMU's.

use crate::monitor::{self, CpuInfo, MonitorTarget};
use serde_json::{Map, Value, json};

type Run = fn(&mut Args, &dyn MonitorTarget) -> Result<Value, String>;

/// What became of a message.
pub struct Done {
    pub reply: Value,
    /// `qmp_capabilities` was accepted.
    pub negotiated: bool,
    /// The program is to end once the reply is out.
    pub quit: bool,
}

impl Done {
    fn new(reply: Value, id: Option<Value>) -> Self {
        let mut reply = reply;
        if let Some(id) = id {
            reply["id"] = id;
        }
        Self { reply, negotiated: false, quit: false }
    }

    fn failed(class: &str, id: Option<Value>, desc: &str) -> Self {
        Self::new(json!({ "error": { "class": class, "desc": desc } }), id)
    }

    pub fn error(id: Option<Value>, desc: &str) -> Self {
        Self::failed("GenericError", id, desc)
    }
}

/// The arguments of one command, each taken at most once.
pub struct Args(Map<String, Value>);

impl Args {
    fn take<T>(&mut self, name: &str, expected: &str, get: fn(&Value) -> Option<T>) -> Result<Option<T>, String> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(v) => match get(&v) {
                None => Err(format!("Invalid parameter type for '{name}', expected: {expected}")),
                some => Ok(some),
            },
        }
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        let v = self.take(name, "string", |v| v.as_str().map(str::to_owned))?;
        v.ok_or_else(|| format!("Parameter '{name}' is missing"))
    }

    fn integer(&mut self, name: &str) -> Result<Option<i64>, String> {
        self.take(name, "integer", Value::as_i64)
    }

    /// No argument may be left that the command does not know.
    fn end(&self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("Parameter '{}' is unexpected", monitor::shown(name))),
            None => Ok(()),
        }
    }
}

const NEGOTIATE: &str = "qmp_capabilities";
const QUIT: &str = "quit";

static COMMANDS: &[(&str, Run)] = &[
    (NEGOTIATE, capabilities),
    ("balloon", balloon),
    ("block_resize", block_resize),
    ("cont", |a, t| a.end().and_then(|()| t.cont()).map(|()| nothing())),
    ("human-monitor-command", human),
    ("migrate", migrate),
    ("migrate-incoming", |a, t| only(a, "uri").and_then(|uri| t.migrate_incoming(&uri)).map(|()| nothing())),
    ("query-balloon", |a, t| a.end().and_then(|()| Ok(json!({ "actual": t.balloon().ok_or(monitor::NO_BALLOON)?.0 })))),
    ("query-block", |a, t| a.end().map(|()| t.block().into())),
    ("query-chardev", |a, t| a.end().map(|()| t.chardevs().into())),
    ("query-commands", |a, _| a.end().map(|()| COMMANDS.iter().map(|(n, _)| json!({ "name": n })).collect())),
    ("query-cpus-fast", |a, t| a.end().map(|()| cpus(t))),
    ("query-kvm", |a, t| a.end().map(|()| json!({ "enabled": t.kvm() == Some(true), "present": t.kvm().is_some() }))),
    ("query-migrate", |a, t| a.end().map(|()| t.migration())),
    ("query-name", |a, t| a.end().map(|()| t.name().map_or_else(nothing, |n| json!({ "name": n })))),
    ("query-status", |a, t| a.end().map(|()| status(t))),
    ("query-target", |a, _| a.end().map(|()| json!({ "arch": "x86_64" }))),
    ("query-uuid", |a, _| a.end().map(|()| json!({ "UUID": "00000000-0000-0000-0000-000000000000" }))),
    ("query-version", |a, _| a.end().map(|()| super::version())),
    // Done when the reply is out.
    (QUIT, |a, _| a.end().map(|()| nothing())),
    ("stop", |a, t| a.end().map(|()| t.stop()).map(|()| nothing())),
    ("system_powerdown", |a, t| a.end().map(|()| t.powerdown()).map(|()| nothing())),
    ("system_reset", |a, t| a.end().map(|()| t.reset()).map(|()| nothing())),
];

fn nothing() -> Value {
    json!({})
}

/// Carries out one message, given whether capabilities have been negotiated.
pub fn run(message: &[u8], negotiated: bool, target: &dyn MonitorTarget) -> Done {
    let mut members = match serde_json::from_slice(message) {
        Ok(Value::Object(m)) => m,
        Ok(_) => return Done::error(None, "QMP input must be a JSON object"),
        Err(e) => return Done::error(None, &format!("JSON parse error, {e}")),
    };
    let id = members.remove("id");
    let (name, mut args) = match request(members) {
        Ok(r) => r,
        Err(desc) => return Done::error(id, &desc),
    };
    let not_found = |desc: &str| Done::failed("CommandNotFound", id.clone(), desc);
    match (negotiated, name == NEGOTIATE) {
        (false, false) => return not_found("Expecting capabilities negotiation with 'qmp_capabilities'"),
        (true, true) => return not_found("Capabilities negotiation is already complete, command ignored"),
        _ => {}
    }
    let Some((_, run)) = COMMANDS.iter().find(|(n, _)| *n == name) else {
        return not_found(&format!("The command {} has not been found", monitor::shown(&name)));
    };
    match run(&mut args, target) {
        Ok(v) => Done { negotiated: name == NEGOTIATE, quit: name == QUIT, ..Done::new(json!({ "return": v }), id) },
        Err(desc) => Done::error(id, &desc),
    }
}

/// Name and arguments of a request.
fn request(mut members: Map<String, Value>) -> Result<(String, Args), String> {
    let name = match members.remove("execute") {
        Some(Value::String(s)) => s,
        Some(_) => return Err("QMP input member 'execute' must be a string".into()),
        None if members.contains_key("exec-oob") => return Err("QMP input member 'exec-oob' is unexpected".into()),
        None => return Err("QMP input lacks member 'execute'".into()),
    };
    let args = match members.remove("arguments") {
        Some(Value::Object(m)) => m,
        Some(_) => return Err("QMP input member 'arguments' must be an object".into()),
        None => Map::new(),
    };
    match members.keys().next() {
        Some(other) => Err(format!("QMP input member '{}' is unexpected", monitor::shown(other))),
        None => Ok((name, Args(args))),
    }
}

fn capabilities(a: &mut Args, _: &dyn MonitorTarget) -> Result<Value, String> {
    let wanted = a.take("enable", "array", |v| v.as_array().cloned())?.unwrap_or_default();
    a.end()?;
    match wanted.first().map(|w| w.as_str()) {
        None => Ok(nothing()),
        Some(Some(word)) => Err(format!("Capability '{}' is not available", monitor::shown(word))),
        Some(None) => Err("Invalid parameter type for 'enable[0]', expected: string".into()),
    }
}

/// Always returns before the migration is done, as in QEMU, where `detach` is there for the monitor's sake.
fn migrate(a: &mut Args, t: &dyn MonitorTarget) -> Result<Value, String> {
    let uri = a.text("uri")?;
    a.take("detach", "boolean", Value::as_bool)?;
    a.end()?;
    t.migrate(&uri, false).map(|()| nothing())
}

fn balloon(a: &mut Args, t: &dyn MonitorTarget) -> Result<Value, String> {
    let bytes = a.integer("value")?.ok_or("Parameter 'value' is missing")?;
    a.end()?;
    let bytes = u64::try_from(bytes).ok().filter(|b| *b > 0).ok_or("Parameter 'target' expects a size")?;
    t.set_balloon(bytes).map(|()| nothing())
}

fn block_resize(a: &mut Args, t: &dyn MonitorTarget) -> Result<Value, String> {
    let name = |a: &mut Args, key| a.take(key, "string", |v| v.as_str().map(str::to_owned));
    let (device, node) = (name(a, "device")?, name(a, "node-name")?);
    let bytes = a.integer("size")?.ok_or("Parameter 'size' is missing")?;
    a.end()?;
    let id = device.or(node).ok_or("Parameter 'device' is missing")?;
    let bytes = u64::try_from(bytes).map_err(|_| "Parameter 'size' expects a >0 size")?;
    t.resize_drive(&monitor::shown(&id), bytes).map(|()| nothing())
}

/// The one argument of a command.
fn only(a: &mut Args, name: &str) -> Result<String, String> {
    let v = a.text(name)?;
    a.end().map(|()| v)
}

fn human(a: &mut Args, t: &dyn MonitorTarget) -> Result<Value, String> {
    let line = a.text("command-line")?;
    let cpu = a.integer("cpu-index")?;
    a.end()?;
    let before = t.cpus().iter().position(|c| c.current);
    if let Some(n) = cpu
        && !usize::try_from(n).is_ok_and(|n| t.select_cpu(n))
    {
        return Err("Parameter 'cpu-index' expects a CPU number".into());
    }
    let said = monitor::run(&line, t);
    // The choice is for this line only, as in QEMU.
    before.map(|n| t.select_cpu(n));
    Ok(said.replace('\n', "\r\n").into())
}

fn status(t: &dyn MonitorTarget) -> Value {
    let state = t.run_state();
    json!({ "status": state.name(), "running": state == crate::control::RunState::Running })
}

fn cpus(t: &dyn MonitorTarget) -> Value {
    let one = |(i, c): (usize, &CpuInfo)| {
        let [socket, core, thread] = c.place;
        let place = json!({ "socket-id": socket, "die-id": 0, "core-id": core, "thread-id": thread });
        let path = format!("/machine/unattached/device[{i}]");
        json!({ "cpu-index": i, "thread-id": c.thread, "qom-path": path, "target": "x86_64", "props": place })
    };
    t.cpus().iter().enumerate().map(one).collect()
}

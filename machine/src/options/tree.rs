//! The option tree: every option, short or long, becomes objects of (group, driver, id, typed properties).

use super::error::{Hint, OptionError};
use super::schema::{self, DriverSpec, Kind};
use super::value;
use std::ops::Range;

/// What kind of thing an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Machine,
    Accel,
    Cpu,
    Memory,
    Smp,
    Kernel,
    Boot,
    Chardev,
    Monitor,
    Gdb,
    Device,
    Drive,
    Netdev,
    Fsdev,
    Object,
    Rtc,
    Icount,
    Log,
    Trace,
    Process,
}

/// A property's value, of the type that the schema gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Switch(bool),
    Number(u64),
    Text(String),
    Span(Range<u64>),
}

/// One node: a driver, its name if it was given one, and its properties in the order given, each at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub group: Group,
    pub driver: &'static str,
    pub id: Option<String>,
    pub props: Vec<(&'static str, Value)>,
    /// The option it came from, as the user would recognise it in a message.
    pub origin: String,
}

/// All objects, in command-line order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    pub objects: Vec<Object>,
}

/// One `key=value` or lone `key` of an option's argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyVal {
    pub key: String,
    pub value: Option<String>,
}

impl KeyVal {
    pub fn new(key: &str, value: &str) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }
}

/// Splits `a,k=v,flag` at single commas; a doubled comma stands for one in the text.
pub fn split_commas(s: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = s.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, parts.last_mut()) {
            (',', Some(last)) if chars.peek() == Some(&',') => {
                chars.next();
                last.push(',');
            }
            (',', _) => parts.push(String::new()),
            (_, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    parts
}

/// Parses `key=value,…`; the first part may omit `implied=`.
pub fn keyvals(s: &str, implied: Option<&str>) -> Vec<KeyVal> {
    let parts = split_commas(s).into_iter().enumerate().filter(|(_, p)| !p.is_empty());
    parts
        .map(|(i, p)| match (p.split_once('='), implied) {
            (Some((k, v)), _) => KeyVal::new(k, v),
            (None, Some(key)) if i == 0 => KeyVal::new(key, &p),
            (None, _) => KeyVal { key: p, value: None },
        })
        .collect()
}

/// Takes the value of `key` out of `kvs` (the last one given wins).
pub fn take(kvs: &mut Vec<KeyVal>, key: &str) -> Option<String> {
    let found = kvs.iter().rev().find(|k| k.key == key)?.value.clone()?;
    kvs.retain(|k| k.key != key);
    Some(found)
}

impl Object {
    /// Makes an object of `driver`, checking every property against the schema. `origin` starts each error message.
    pub fn new(group: Group, driver: &str, mut kvs: Vec<KeyVal>, origin: &str) -> Result<Self, OptionError> {
        let spec = schema::driver(group, driver, origin)?;
        let id = take(&mut kvs, "id");
        if let Some(id) = &id {
            check_id(id, origin)?;
        }
        let mut o = Self { group, driver: spec.name, id, props: Vec::new(), origin: origin.to_owned() };
        for kv in &kvs {
            o.set(spec, kv)?;
        }
        match spec.props.iter().find(|p| p.required && o.get(p.name).is_none()) {
            Some(p) => Err(OptionError::MissingProperty(o.origin, p.name)),
            None => Ok(o),
        }
    }

    fn set(&mut self, spec: &'static DriverSpec, kv: &KeyVal) -> Result<(), OptionError> {
        let key = kv.key.as_str();
        let find = |k: &str| spec.props.iter().find(|p| p.name == k);
        let negated = kv.value.is_none().then(|| key.strip_prefix("no").and_then(find)).flatten();
        let (prop, text) = match (find(key), negated) {
            (Some(p), _) => (p, kv.value.as_deref().unwrap_or("on")),
            (None, Some(p)) if p.kind == Kind::Switch => (p, "off"),
            _ => {
                let known = spec.props.iter().map(|p| p.name);
                return Err(OptionError::UnknownProperty(self.origin.clone(), key.into(), Hint::for_word(key, known)));
            }
        };
        let v = parse_value(prop.kind, text).map_err(|why| match why {
            Bad::Word(words) => OptionError::UnknownValue(
                format!("{}: {}", self.origin, prop.name),
                text.into(),
                Hint::for_word(text, words.iter().copied()),
            ),
            Bad::Text(why) => OptionError::BadValue(format!("{}: {}", self.origin, prop.name), text.into(), why),
        })?;
        self.props.retain(|(n, _)| *n != prop.name);
        self.props.push((prop.name, v));
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.props.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(s) => Some(s),
            _ => None,
        }
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(n) => Some(*n),
            _ => None,
        }
    }

    pub fn switch(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Switch(b) => Some(*b),
            _ => None,
        }
    }
}

enum Bad {
    Word(&'static [&'static str]),
    Text(String),
}

fn parse_value(kind: Kind, text: &str) -> Result<Value, Bad> {
    match kind {
        Kind::Switch => value::switch(text).map(Value::Switch).map_err(Bad::Text),
        Kind::Number(max) => match value::number(text) {
            Ok(n) if n > max => Err(Bad::Text(format!("larger than {max}"))),
            r => r.map(Value::Number).map_err(Bad::Text),
        },
        Kind::Positive(max) => match value::number(text) {
            Ok(n) if n == 0 || n > max => Err(Bad::Text(format!("not between 1 and {max}"))),
            r => r.map(Value::Number).map_err(Bad::Text),
        },
        Kind::Size(unit) => value::size(text, unit).map(Value::Number).map_err(Bad::Text),
        Kind::Span => value::span(text).map(Value::Span).map_err(Bad::Text),
        Kind::Word(words) if words.contains(&text) => Ok(Value::Text(text.into())),
        Kind::Word(words) => Err(Bad::Word(words)),
        Kind::Text if text.contains('\0') => Err(Bad::Text("has a zero byte".into())),
        Kind::Text => Ok(Value::Text(text.into())),
    }
}

/// Ids start with a letter and hold letters, digits, `-`, `.` and `_`, as in QEMU.
fn check_id(id: &str, origin: &str) -> Result<(), OptionError> {
    let ok =
        id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if ok {
        return Ok(());
    }
    let why = "ids start with a letter and hold letters, digits, '-', '.' and '_'";
    Err(OptionError::BadValue(format!("{origin}: id"), id.into(), why.into()))
}

impl Tree {
    pub fn push(&mut self, o: Object) {
        self.objects.push(o);
    }

    /// Adds an object of which there is only one (`-machine`, `-m`, …): later properties replace earlier ones.
    pub fn merge(&mut self, o: Object) {
        let Some(old) = self.objects.iter_mut().find(|x| x.group == o.group) else {
            return self.push(o);
        };
        old.driver = o.driver;
        old.origin = o.origin;
        for (name, v) in o.props {
            old.props.retain(|(n, _)| *n != name);
            old.props.push((name, v));
        }
    }

    pub fn one(&self, group: Group) -> Option<&Object> {
        self.objects.iter().find(|o| o.group == group)
    }

    pub fn all(&self, group: Group) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |o| o.group == group)
    }
}

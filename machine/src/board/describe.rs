//! The board in words, for the monitor: memory map, devices, interrupt controllers. Registers come from what each device saves.

use super::Board;
use serde_json::Value;
use std::fmt::Write;
use vm_core::Section;

/// Items of a list that are shown.
const MOST: usize = 256;

fn number(v: &Value) -> Option<String> {
    match v {
        Value::Number(n) => {
            Some(n.as_u64().map_or_else(|| n.to_string(), |n| if n < 10 { n.to_string() } else { format!("{n:#x}") }))
        }
        Value::Bool(b) => Some(if *b { "1" } else { "0" }.into()),
        Value::Null => Some("-".into()),
        Value::String(s) => Some(s.clone()),
        _ => None,
    }
}

/// A saved value: one line if it is a number or a list of them, else a line for each part.
fn show(text: &mut String, name: &str, v: &Value, depth: usize) {
    let indent = 2 * depth;
    let list = |items: &[Value]| items.iter().take(MOST).map(number).collect::<Option<Vec<_>>>();
    // Writing to a String cannot fail.
    let _ = match v {
        Value::Object(o) => {
            let _ = writeln!(text, "{:indent$}{name}:", "");
            o.iter().for_each(|(n, v)| show(text, n, v, depth + 1));
            Ok(())
        }
        Value::Array(a) => match list(a) {
            Some(words) => writeln!(text, "{:indent$}{name}: {}", "", words.join(" ")),
            None => {
                a.iter().take(MOST).enumerate().for_each(|(i, v)| show(text, &format!("{name}[{i}]"), v, depth));
                Ok(())
            }
        },
        _ => writeln!(text, "{:indent$}{name}: {}", "", number(v).unwrap_or_default()),
    };
}

fn section(s: &Section) -> String {
    let mut text = String::new();
    show(&mut text, &s.name, &s.data, 0);
    text
}

impl Board {
    /// What lies where: RAM, devices in memory, ports.
    pub fn describe_memory(&self) -> String {
        let mut text = String::from("memory\n");
        let ram = self.map.ram_ranges().map(|(at, len, writable)| (at.0, len, if writable { "ram" } else { "rom" }.to_owned()));
        let mut list: Vec<_> = ram.chain(self.mmio.ranges()).collect();
        list.extend(self.lapics[0].mmio_base().map(|at| (at, 0x1000, "lapic".to_owned())));
        list.sort();
        for (at, len, name) in list {
            let _ = writeln!(text, "  {at:016x}-{:016x} {name}", at + (len - 1));
        }
        text.push_str("I/O\n");
        for (at, len, name) in self.ports.ranges() {
            let _ = writeln!(text, "  {at:04x}-{:04x} {name}", at + (len - 1));
        }
        text
    }

    /// All devices, with where they are.
    pub fn describe_devices(&self) -> String {
        let mut text = format!("{}\n", self.kind());
        let ranges: Vec<_> = self.ports.ranges().map(|r| ("ports", r)).chain(self.mmio.ranges().map(|r| ("memory", r))).collect();
        for d in &self.devices {
            let name = d.lock().name();
            let _ = writeln!(text, "  {name}");
            for (kind, (at, len, _)) in ranges.iter().filter(|r| r.1.2 == name) {
                let _ = writeln!(text, "    {kind} {at:#x}-{:#x}", at + (len - 1));
            }
        }
        self.lapics.iter().enumerate().for_each(|(n, _)| {
            let _ = writeln!(text, "  lapic{n}");
        });
        text
    }

    /// Registers of the 8259s, if there are any, and the I/O APIC, which are the first devices.
    pub fn describe_interrupts(&self) -> String {
        self.devices.iter().take(self.controllers()).map(|d| section(&d.lock().save())).collect()
    }

    /// Registers of a CPU's local APIC.
    pub fn describe_lapic(&self, n: usize) -> String {
        self.lapics.get(n).map_or_else(String::new, |l| section(&l.save()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn saved_state_is_shown_line_by_line() {
        let data = json!({ "irr": 16, "on": true, "pins": [1, 255], "chips": [{ "imr": 3 }, { "imr": 4 }] });
        let text = section(&Section { name: "pic".into(), version: 1, data });
        assert_eq!(text, "pic:\n  chips[0]:\n    imr: 3\n  chips[1]:\n    imr: 4\n  irr: 0x10\n  on: 1\n  pins: 1 0xff\n");
    }
}

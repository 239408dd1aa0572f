//! Filetests: text files with one case per block (docs/ir.md, "Filetests"). Finds the files, splits them into cases and
//! gives each to the engine of its file type.

mod ir_cases;
mod values;
mod x86_cases;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to do with golden parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Check,
    /// Rewrite those that differ.
    Bless,
}

/// What a run over all files found.
#[derive(Debug, Default)]
pub struct Report {
    pub cases: usize,
    /// Cases of each type of file, by its extension.
    pub kinds: BTreeMap<String, usize>,
    /// Files changed by `Mode::Bless`.
    pub rewritten: usize,
    /// One text for each failed case: file, line, what is wrong.
    pub failures: Vec<String>,
    /// One text for each engine that cannot hold a case: file, line, engine, reason.
    pub skipped: Vec<String>,
}

/// One case of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Case {
    /// Line of the command, from 1.
    pub line: usize,
    /// Words after `test`.
    pub command: Vec<String>,
    /// `key: text` lines, in order.
    pub fields: Vec<(String, String)>,
    /// The text between fields and `expect:`, comments included.
    pub body: String,
    /// Golden text after `expect:`, if there is such a line.
    pub expect: Option<String>,
    /// Everything from the command line up to the golden text, as in the file.
    head: String,
    /// Blank lines and comments at the end.
    tail: String,
    /// Of very many: runs on the reference and one other engine.
    pub few: bool,
}

impl Case {
    /// Texts of all lines with this key.
    pub fn field(&self, key: &str) -> Option<String> {
        let all: Vec<&str> = self.fields.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect();
        (!all.is_empty()).then(|| all.join(" "))
    }
}

/// What came of a case.
pub(crate) enum Verdict {
    Pass,
    /// It passes on the engines that can hold it; engine and reason for each other one.
    Partial(Vec<String>),
    /// The golden part should be this.
    Golden(String),
    Fail(String),
}

const FIELDS: [&str; 7] = ["in", "out", "error", "mode", "cpu", "bytes", "asm"];

/// Runs the x86 cases of a text on the reference engine.
///
/// # Errors
/// What is wrong.
pub fn check_text(text: &str) -> Result<(), String> {
    split(text).1.iter().try_for_each(x86_cases::check)
}

/// All files of x86 cases, as text.
///
/// # Panics
/// If one cannot be read.
pub fn x86_texts() -> Vec<String> {
    let mut files = Vec::new();
    let mut report = Report::default();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/x86"), &mut files, &mut report);
    files.iter().map(|f| std::fs::read_to_string(f).expect("a file of the repository")).collect()
}

/// Runs every file under this crate's `filetests/`.
pub fn run_all(mode: Mode) -> Report {
    let mut report = Report::default();
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests"), &mut files, &mut report);
    files.sort();
    for f in files {
        if let Err(e) = run_file(&f, mode, &mut report) {
            report.failures.push(format!("{}: {e}", f.display()));
        }
    }
    report
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>, report: &mut Report) {
    let entries = match std::fs::read_dir(dir) {
        Ok(e) => e,
        Err(e) => return report.failures.push(format!("{}: {e}", dir.display())),
    };
    for e in entries.flatten() {
        let p = e.path();
        if p.is_dir() {
            collect(&p, out, report);
        } else {
            out.push(p);
        }
    }
}

fn run_file(path: &Path, mode: Mode, report: &mut Report) -> std::io::Result<()> {
    let run = match path.extension().and_then(|e| e.to_str()) {
        Some("ir") => ir_cases::run,
        Some("x86") => x86_cases::run,
        _ => return Err(std::io::Error::other("no engine for this type of file")),
    };
    let text = std::fs::read_to_string(path)?;
    let (intro, cases) = split(&text);
    let mut blessed = intro;
    let kind = path.extension().unwrap_or_default().to_string_lossy().into_owned();
    *report.kinds.entry(kind).or_default() += cases.len();
    // Those that a processor made (`record`) are thousands.
    let few = path.parent().is_some_and(|p| p.ends_with("host"));
    for mut c in cases {
        c.few = few;
        report.cases += 1;
        match run(&c) {
            Verdict::Pass => {}
            Verdict::Partial(why) => {
                report.skipped.extend(why.iter().map(|w| format!("{}:{}: {w}", path.display(), c.line)));
            }
            Verdict::Golden(text) if mode == Mode::Bless => c.expect = Some(text),
            Verdict::Golden(text) => {
                let old = c.expect.as_deref().unwrap_or("(nothing)\n");
                report.failures.push(format!(
                    "{}:{}: golden part differs\n--- file\n{old}--- now\n{text}",
                    path.display(),
                    c.line
                ));
            }
            Verdict::Fail(why) => report.failures.push(format!("{}:{}: {why}", path.display(), c.line)),
        }
        write_case(&mut blessed, &c);
    }
    if mode == Mode::Bless && blessed != text {
        std::fs::write(path, blessed)?;
        report.rewritten += 1;
    }
    Ok(())
}

fn write_case(out: &mut String, c: &Case) {
    out.push_str(&c.head);
    if let Some(e) = &c.expect {
        out.push_str("expect:\n");
        out.push_str(e);
    }
    out.push_str(&c.tail);
}

/// The lines before the first case, and the cases.
fn split(text: &str) -> (String, Vec<Case>) {
    let mut intro = String::new();
    let mut cases: Vec<Case> = Vec::new();
    for (n, line) in text.split_inclusive('\n').enumerate() {
        if let Some(command) = line.strip_prefix("test ") {
            let code = command.split(';').next().unwrap_or_default();
            let command = code.split_whitespace().map(String::from).collect();
            cases.push(Case { line: n + 1, command, head: line.into(), ..Case::default() });
        } else if let Some(c) = cases.last_mut() {
            case_line(c, line);
        } else {
            intro.push_str(line);
        }
    }
    (intro, cases)
}

fn case_line(c: &mut Case, line: &str) {
    let code = line.split(';').next().unwrap_or_default().trim();
    if code.is_empty() {
        // It belongs to what follows: the next line of this case, or the end.
        c.tail.push_str(line);
        return;
    }
    let gap = std::mem::take(&mut c.tail);
    if let Some(e) = &mut c.expect {
        e.push_str(&gap);
        e.push_str(line);
        return;
    }
    c.head.push_str(&gap);
    if code == "expect:" {
        c.expect = Some(String::new());
        return;
    }
    c.head.push_str(line);
    match code.split_once(':').filter(|(k, _)| FIELDS.contains(k)) {
        Some((k, v)) => c.fields.push((k.into(), v.trim().into())),
        None => c.body.push_str(line),
    }
}

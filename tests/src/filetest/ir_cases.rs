//! The commands of `.ir` files, on the toy guest of `ir::testing`.

use ir::pass::{self, Passes};
use ir::testing::{HELPERS, layout, run as interpret};
use ir::{Block, parse, verify};

use super::values::{Values, outcome};
use super::{Case, Verdict};

pub(super) fn run(c: &Case) -> Verdict {
    let words: Vec<&str> = c.command.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["run"] => execute(c),
        ["optimize", passes @ ..] => optimize(c, passes),
        ["verify-error"] => verify_error(c),
        ["roundtrip"] => round_trip(c),
        _ => Err(format!("no command `{}`", c.command.join(" "))),
    };
    result.unwrap_or_else(Verdict::Fail)
}

fn block(c: &Case) -> Result<Block, String> {
    parse(&c.body, &layout(), HELPERS).map_err(|e| format!("block, {e}"))
}

fn verified(c: &Case) -> Result<Block, String> {
    let b = block(c)?;
    verify(&b, &layout(), HELPERS).map_err(|e| e.to_string())?;
    Ok(b)
}

fn print(b: &Block) -> String {
    b.display(&layout(), HELPERS).to_string()
}

/// The block and its optimised form both do what `out:` says.
fn execute(c: &Case) -> Result<Verdict, String> {
    let block = verified(c)?;
    let out = c.field("out").ok_or("no `out:` line")?;
    let mut words = out.split_whitespace();
    let end = words.next().ok_or("`out:` is empty")?;
    let (mut from, mut want) = (Values::new(), Values::new());
    for w in c.field("in").unwrap_or_default().split_whitespace() {
        from.apply(w)?;
        want.apply(w)?;
    }
    words.try_for_each(|w| want.apply(w))?;
    let want = from.changes(&want.state, &want.memory).join(" ");
    let mut optimised = block.clone();
    Passes::new().optimize(&mut optimised, &layout(), HELPERS);
    for (name, b) in [("as written", &block), ("optimised", &optimised)] {
        let (mut state, mut memory) = (from.state, from.to_memory());
        let got_end = outcome(&interpret(b, &mut state, &mut memory));
        let got = from.changes(&state, &memory.bytes).join(" ");
        if (got_end.as_str(), &got) != (end, &want) {
            return Err(format!("{name}:\n  out: {end} {want}\n  got: {got_end} {got}"));
        }
    }
    Ok(Verdict::Pass)
}

fn optimize(c: &Case, names: &[&str]) -> Result<Verdict, String> {
    let mut b = verified(c)?;
    let (mut passes, layout) = (Passes::new(), layout());
    if names.is_empty() {
        passes.optimize(&mut b, &layout, HELPERS);
    }
    for n in names {
        let p = pass::find(n).ok_or_else(|| format!("no pass `{n}`"))?;
        passes.run(p, &mut b, &layout, HELPERS);
    }
    verify(&b, &layout, HELPERS).map_err(|e| format!("afterwards, {e}"))?;
    let text = print(&b);
    Ok(if c.expect.as_ref() == Some(&text) { Verdict::Pass } else { Verdict::Golden(text) })
}

fn verify_error(c: &Case) -> Result<Verdict, String> {
    let want = c.field("error").ok_or("no `error:` line")?;
    match verify(&block(c)?, &layout(), HELPERS) {
        Ok(()) => Err(format!("it verifies; expected: {want}")),
        Err(e) if e.to_string() == want => Ok(Verdict::Pass),
        Err(e) => Err(format!("error: {e}\n  expected: {want}")),
    }
}

fn round_trip(c: &Case) -> Result<Verdict, String> {
    let b = block(c)?;
    let text = print(&b);
    if text != c.body {
        return Err(format!("it prints as\n{text}"));
    }
    let again = parse(&text, &layout(), HELPERS).map_err(|e| format!("printed text, {e}"))?;
    if again == b { Ok(Verdict::Pass) } else { Err("the printed text is another block".into()) }
}

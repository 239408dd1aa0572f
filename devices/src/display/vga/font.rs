//! The font that is in plane 2 at power-on: Spleen 8x16, in the order of code page 437.

use codepage_437::CP437_WINGDINGS;
use spleen_font::FONT_8X16;
use std::collections::HashMap;
use std::sync::LazyLock;

pub const HEIGHT: usize = 16;
/// Bytes of a character's place in plane 2.
pub const SLOT: usize = 32;

type Glyph = [u8; HEIGHT];

static GLYPHS: LazyLock<Vec<Glyph>> = LazyLock::new(|| {
    let font = by_character(FONT_8X16);
    let glyph = |n: u8| font.get(&CP437_WINGDINGS.decode(n)).copied().unwrap_or_default();
    (0..=255).map(|n| if n == 0 { Glyph::default() } else { glyph(n) }).collect()
});

/// Glyphs of a font file of the Linux console's first format (psfu(5)): header, 512 glyphs, and for each the characters that
/// it stands for.
fn by_character(file: &[u8]) -> HashMap<char, Glyph> {
    const HEADER: usize = 4;
    const GLYPHS: usize = 512;
    const END: u16 = 0xffff;
    let glyphs = file.get(HEADER..).unwrap_or_default().as_chunks::<HEIGHT>().0;
    let table = file.get(HEADER + GLYPHS * HEIGHT..).unwrap_or_default().as_chunks::<2>().0;
    let mut at = glyphs.iter().take(GLYPHS);
    let (mut glyph, mut map) = (at.next(), HashMap::new());
    for unit in table.iter().map(|b| u16::from_le_bytes(*b)) {
        match (unit, glyph) {
            (END, _) => glyph = at.next(),
            (c, Some(g)) => {
                char::from_u32(c.into()).map(|c| map.entry(c).or_insert(*g));
            }
            (_, None) => break,
        }
    }
    map
}

/// 256 glyphs, each row a byte with its leftmost dot highest.
pub fn glyphs() -> &'static [[u8; HEIGHT]] {
    &GLYPHS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_characters_differ() {
        let g = glyphs();
        let printable: std::collections::BTreeSet<_> = (b'!'..=b'~').map(|c| g[usize::from(c)]).collect();
        assert_eq!(printable.len(), 94);
        assert!(printable.iter().all(|p| *p != [0; HEIGHT]));
        assert_eq!((g[0], g[32]), ([0; HEIGHT], [0; HEIGHT]));
        let blank = (128..=254).filter(|n| g[*n] == [0; HEIGHT]).count();
        assert!(blank < 10, "the font lacks a few Greek letters only, not {blank} characters");
        assert_eq!(g[0xdb], [0xff; HEIGHT], "the full block");
    }
}

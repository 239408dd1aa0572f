//! The program's own memory once the guest runs natively: most of what it is made of has served its turn when it has started.
//!
//! UNSAFE: looks at the segments that the loader has mapped, and unmaps pages of those that nobody can have written to; looks at the
//! arguments before `main`, and sets a variable of the environment then.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};

const PAGE: usize = 4096;

/// The loader calls it before the allocator's own start (glibc hands arguments to these functions; lower numbers come first).
#[cfg(target_env = "gnu")]
#[used]
#[unsafe(link_section = ".init_array.00099")]
static EARLY: extern "C" fn(c_int, *const *const c_char) = small_pages;

/// The allocator (mimalloc) asks for large pages, of which a heap of some hundred KiB fills four: 8 MiB. A machine that is to be small does
/// without, unless the user says otherwise.
#[cfg(target_env = "gnu")]
extern "C" fn small_pages(argc: c_int, argv: *const *const c_char) {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the loader hands over `argc` pointers to strings that end with 0, which nobody has changed yet.
    let mut args = (0..count).map(|i| unsafe { CStr::from_ptr(*argv.add(i)) }.to_bytes());
    if args.any(is_small) {
        // SAFETY: there are no other threads yet; both strings are constants.
        unsafe { libc::setenv(c"MIMALLOC_ALLOW_THP".as_ptr(), c"0".as_ptr(), 0) };
    }
}

/// Names an argument of `-machine` microvm?
fn is_small(arg: &[u8]) -> bool {
    let first = arg.split(|b| *b == b',').next().unwrap_or_default();
    first == b"microvm" || first == b"type=microvm"
}

/// Gives back the memory of code and constants of the program and its libraries. They are read again from their files as they are
/// needed, by pieces of some pages: what only starting needs stays away.
pub fn forget_start_up() {
    // SAFETY: `object` keeps to the callback's contract; it is called before this returns, for each loaded object.
    unsafe { libc::dl_iterate_phdr(Some(object), std::ptr::null_mut()) };
}

unsafe extern "C" fn object(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the loader hands over a description that is valid during the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: so many program headers lie there (gABI "Program Header").
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // Relocations in segments that are not writable would be lost.
    let relocated = headers.iter().find(|h| h.p_type == libc::PT_DYNAMIC).is_none_or(|h| has_textrel(info.dlpi_addr, h));
    if relocated {
        return 0;
    }
    for h in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = (info.dlpi_addr as usize).wrapping_add(h.p_vaddr as usize) & !(PAGE - 1);
        let len = (h.p_memsz as usize) & !(PAGE - 1);
        // SAFETY: a private mapping of a file that was never writable and has no relocations: each page is as in the file, and
        // comes from there again. The last page, which may belong to another segment as well, stays.
        unsafe { libc::madvise(start as *mut c_void, len, libc::MADV_DONTNEED) };
    }
    0
}

/// Whether the dynamic section (gABI "Dynamic Section") says that segments were relocated which are not writable.
fn has_textrel(base: u64, dynamic: &libc::Elf64_Phdr) -> bool {
    const DT_NULL: u64 = 0;
    const DT_TEXTREL: u64 = 22;
    const DT_FLAGS: u64 = 30;
    const DF_TEXTREL: u64 = 4;
    let count = dynamic.p_memsz as usize / 16;
    let first = base.wrapping_add(dynamic.p_vaddr) as *const [u64; 2];
    // SAFETY: the dynamic section of a loaded object: pairs of words, aligned, which nobody changes after loading.
    let entries = unsafe { std::slice::from_raw_parts(first, count) };
    let used = entries.iter().take_while(|e| e[0] != DT_NULL);
    used.into_iter().any(|e| e[0] == DT_TEXTREL || e[0] == DT_FLAGS && e[1] & DF_TEXTREL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_to_be_small_is_known_by_its_name() {
        for (arg, small) in
            [("microvm", true), ("microvm,acpi=off", true), ("type=microvm", true), ("q35", false), ("-M", false), ("", false)]
        {
            assert_eq!(is_small(arg.as_bytes()), small, "{arg}");
        }
    }

    /// Constants, tables of pointers, code and libraries work as before, on several threads.
    #[test]
    fn the_program_goes_on() {
        static WORDS: [&str; 3] = ["guest", "host", "page"];
        let text = || std::hint::black_box(&WORDS).iter().map(|w| w.to_uppercase()).collect::<String>();
        let before = text();
        std::thread::scope(|s| {
            let t = s.spawn(|| (0..200).all(|_| text() == "GUESTHOSTPAGE"));
            (0..20).for_each(|_| forget_start_up());
            assert!(t.join().is_ok_and(|same| same));
        });
        assert_eq!(text(), before);
    }
}

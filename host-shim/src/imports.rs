//! What the program itself imports, as its dynamic section says.
//!
//! `unsafe` is allowed here: the loader's tables.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};

const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_PLTRELSZ: i64 = 2;
const DT_JMPREL: i64 = 23;

/// `Elf64_Dyn`.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

/// `Elf64_Rela`: on 64-bit targets calls are bound by these.
#[repr(C)]
struct Relocation {
    place: usize,
    /// Symbol in the high half, type in the low half.
    info: u64,
    addend: i64,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    rest: [u32; 5],
}

/// Parts of the names of functions for wide characters on streams, in C (`fputws`, `getwchar`, `fwprintf`, `__wprintf_chk`) and in
/// C++ (`std::basic_ostream<wchar_t>`).
const WIDE: [&[u8]; 6] = [b"getw", b"putw", b"wprintf", b"wscanf", b"fwide", b"IwSt11char_traits"];

const UNKNOWN: u32 = 0;
const YES: u32 = 1;
const NO: u32 = 2;

/// The program calls functions for wide characters on streams, which streams with callbacks don't have.
pub fn wide_streams() -> bool {
    static ANSWER: AtomicU32 = AtomicU32::new(UNKNOWN);
    match ANSWER.load(Ordering::Relaxed) {
        YES => true,
        NO => false,
        _ => {
            let mut found = false;
            // SAFETY: the callback gets a pointer to this variable, and is done when the call returns.
            unsafe { libc::dl_iterate_phdr(Some(look_at_program), (&raw mut found).cast()) };
            ANSWER.store(if found { YES } else { NO }, Ordering::Relaxed);
            found
        }
    }
}

/// The first object is the program.
unsafe extern "C" fn look_at_program(info: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a loaded object: its program headers are mapped.
    unsafe {
        let info = &*info;
        let headers = core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        let base = usize::try_from(info.dlpi_addr).unwrap_or(0);
        if let Some(h) = headers.iter().find(|h| h.p_type == libc::PT_DYNAMIC) {
            let at = base + usize::try_from(h.p_vaddr).unwrap_or(0);
            *found.cast::<bool>() = imports_wide(core::ptr::with_exposed_provenance(at));
        }
    }
    1
}

/// # Safety
/// `table` is the dynamic section of a loaded object, whose addresses the loader has relocated.
unsafe fn imports_wide(table: *const Dynamic) -> bool {
    let (mut names, mut symbols, mut calls, mut bytes) = (0, 0, 0, 0);
    // SAFETY: contract; the section ends with a zero tag.
    unsafe {
        for i in 0.. {
            let entry = &*table.add(i);
            match entry.tag {
                0 => break,
                DT_STRTAB => names = entry.value,
                DT_SYMTAB => symbols = entry.value,
                DT_JMPREL => calls = entry.value,
                DT_PLTRELSZ => bytes = entry.value,
                _ => {}
            }
        }
        if names == 0 || symbols == 0 || calls == 0 {
            return false;
        }
        let calls: *const Relocation = core::ptr::with_exposed_provenance(calls);
        let symbols: *const Symbol = core::ptr::with_exposed_provenance(symbols);
        (0..bytes / size_of::<Relocation>()).any(|i| {
            let symbol = usize::try_from((*calls.add(i)).info >> 32).unwrap_or(0);
            let name = names + (*symbols.add(symbol)).name as usize;
            let name = CStr::from_ptr(core::ptr::with_exposed_provenance(name)).to_bytes();
            WIDE.iter().any(|part| name.windows(part.len()).any(|w| w == *part))
        })
    }
}

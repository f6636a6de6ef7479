//! Exported names of variadic functions: each jumps, with all its arguments where they are, to the C function that
//! collects them (`c/variadic.c`).
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::arch::naked_asm;

macro_rules! jumps {
    ($($name:ident => $target:ident;)*) => {
        unsafe extern "C" {
            $(fn $target();)*
        }
        $(
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                naked_asm!("jmp {to}", to = sym $target);
                #[cfg(target_arch = "aarch64")]
                naked_asm!("b {to}", to = sym $target);
            }
        )*
    };
}

jumps! {
    dprintf => ipc_direct_dprintf;
    __dprintf_chk => ipc_direct_dprintf_chk;
    execl => ipc_direct_execl;
    execlp => ipc_direct_execlp;
    execle => ipc_direct_execle;
}

/* The C functions with variable arguments that the shim defines: stable Rust can call such functions, but not define them.
 * Each makes a list of its arguments and calls the form that takes one. The names are private; Rust exports libc's
 * names as jumps to them. */

#include <stdarg.h>

/* Defined in Rust, in libc's place. */
int vdprintf(int fd, const char *format, va_list list);
int __vdprintf_chk(int fd, int flag, const char *format, va_list list);

int ipc_direct_dprintf(int fd, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int written = vdprintf(fd, format, list);
    va_end(list);
    return written;
}

int ipc_direct_dprintf_chk(int fd, int flag, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int written = __vdprintf_chk(fd, flag, format, list);
    va_end(list);
    return written;
}

/* The C functions with variable arguments that the shim defines: stable Rust can call such functions, but not define them.
 * Each makes a list of its arguments and calls the form that takes one. The names are private; Rust exports libc's
 * names as jumps to them. */

#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

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

/* Counts the arguments after the first, copies all to an array on the stack, and leaves `ap` behind the null. */
#define COLLECT(first, argv)                        \
    va_list count, ap;                              \
    size_t n = first != NULL;                       \
    va_start(count, first);                         \
    while (n != 0 && va_arg(count, char *) != NULL) \
        n++;                                        \
    va_end(count);                                  \
    char *argv[n + 1];                              \
    va_start(ap, first);                            \
    argv[0] = (char *)first;                        \
    for (size_t i = 1; i <= n; i++)                 \
        argv[i] = va_arg(ap, char *)

int ipc_direct_execl(const char *path, const char *arg, ...)
{
    COLLECT(arg, argv);
    va_end(ap);
    return execv(path, argv);
}

int ipc_direct_execlp(const char *file, const char *arg, ...)
{
    COLLECT(arg, argv);
    va_end(ap);
    return execvp(file, argv);
}

int ipc_direct_execle(const char *path, const char *arg, ...)
{
    COLLECT(arg, argv);
    char **envp = va_arg(ap, char **);
    va_end(ap);
    return execve(path, argv, envp);
}

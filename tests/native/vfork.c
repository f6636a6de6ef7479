/* vfork(2) and exec, which Rust cannot express: the function returns twice. */
#include <unistd.h>

/* Starts `path` with descriptors moved as `moves` (pairs from, to) says. */
int case_vfork_exec(const char *path, char *const argv[], char *const envp[], const int *moves, int count)
{
    int pid = vfork();
    if (pid == 0) {
        for (int i = 0; i < count; i++)
            if (dup2(moves[2 * i], moves[2 * i + 1]) < 0)
                _exit(126);
        execve(path, argv, envp);
        _exit(127);
    }
    return pid;
}

/* Ordinary programs whose standard input and output are sockets, as inetd starts them. */
#include "common.h"

static char input[200000];

/* Runs `command` in a child whose descriptors 0 and 1 are one end of a connection, and prints what came back. */
static void filter(const char *const command[])
{
    int p[2];
    connected(p);
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        dup2(p[1], 0);
        dup2(p[1], 1);
        close(p[0]);
        close(p[1]);
        execvp(command[0], (char *const *)command);
        _exit(127);
    }
    close(p[1]);
    size_t len = 0;
    for (int i = 0; len < sizeof input - 100; i++)
        len += (size_t)sprintf(input + len, "%d line %d of words\n", i * 7919 % 5003, i);
    /* Sent by a child, since who reads all before it writes and who does not must not be known here. */
    pid_t feeder = fork();
    if (feeder == 0) {
        for (size_t done = 0; done < len;) {
            ssize_t n = send(p[0], input + done, len - done, MSG_NOSIGNAL);
            if (n < 0)
                break;
            done += (size_t)n;
        }
        shutdown(p[0], SHUT_WR);
        _exit(0);
    }
    unsigned long sum = 0, n = 0;
    char room[65536], start[65] = "";
    ssize_t r;
    while ((r = recv(p[0], room, sizeof room, 0)) > 0)
        for (ssize_t i = 0; i < r; i++, n++) {
            if (n < sizeof start - 1)
                start[n] = room[i] == '\n' ? '|' : room[i];
            sum = sum * 31 + (unsigned char)room[i];
        }
    int status, fed;
    waitpid(pid, &status, 0);
    waitpid(feeder, &fed, 0);
    say("status %x, %lu bytes, sum %lu, end %zd: %s", status, n, sum, r, start);
}

#define FILTER(name, ...)                                               \
    static void name(void)                                         \
    {                                                              \
        filter((const char *const[]){__VA_ARGS__, NULL});          \
    }

FILTER(run_cat, "cat")
FILTER(run_sort, "sort", "-n")
FILTER(run_grep, "grep", "1.*7")
FILTER(run_sed, "sed", "-n", "s/line/LINE/p")
FILTER(run_awk, "awk", "{ s += $1; print s, $2 }")
FILTER(run_tr, "tr", "a-z", "A-Z")
FILTER(run_cut, "cut", "-d ", "-f2-3")
FILTER(run_wc, "wc")
FILTER(run_tee, "tee", "/dev/null")
FILTER(run_seq, "sh", "-c", "cat >/dev/null; seq 20000")
FILTER(run_uniq, "uniq", "-c")
FILTER(run_perl, "perl", "-ne", "print scalar reverse $_; END { printf STDERR ''; print \"end $.\\n\" }")
FILTER(run_python, "python3", "-c", "import sys\nfor n, l in enumerate(sys.stdin): print(n, l.split()[0])")
FILTER(run_bash, "bash", "-c", "while read -r a b; do echo \"$b:$a\"; done; printf 'end %s\\n' here")
FILTER(run_dash, "dash", "-c", "read a b; echo \"$b $a\"; printf '%s\\n' printed; sort | tail -n 3; echo done")
FILTER(run_md5sum, "md5sum")
FILTER(run_head, "sh", "-c", "head -n 3; cat >/dev/null")

static const struct test TESTS[] = {
    {"cat", "user", run_cat},
    {"sort", "user", run_sort},
    {"grep", "user", run_grep},
    {"sed", "user", run_sed},
    {"awk", "user", run_awk},
    {"tr", "user", run_tr},
    {"cut", "user", run_cut},
    {"wc", "user", run_wc},
    {"tee", "user", run_tee},
    {"seq", "user", run_seq},
    {"uniq", "user", run_uniq},
    {"perl", "user", run_perl},
    {"python", "user", run_python},
    {"bash", "user", run_bash},
    {"dash", "user", run_dash},
    {"md5sum", "user", run_md5sum},
    {"head", "user", run_head},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

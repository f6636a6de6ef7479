/* What the C programs of this suite share: connections to themselves, and a transcript on a descriptor of its own. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A case of a program: `PROGRAM list` prints them, `PROGRAM NAME` runs one. `path` is "user" if all traffic must go through
 * user space under the shim, "any" if not. */
struct test {
    const char *name;
    const char *path;
    void (*run)(void);
};

/* Where the transcript goes: high, so that cases have the low numbers for themselves. */
enum { TRANSCRIPT = 900 };

__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
    char line[4096];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(line, sizeof line - 1, format, list);
    va_end(list);
    line[n++] = '\n';
    if (write(TRANSCRIPT, line, (size_t)n) != n)
        _exit(3);
}

/* A call and what came of it. */
#define SAY(call)                                                                                                              \
    do {                                                                                                                       \
        errno = 0;                                                                                                             \
        long say_r = (long)(call);                                                                                             \
        int say_e = errno;                                                                                                     \
        say("%s = %ld%s%s", #call, say_r, say_r < 0 ? " " : "", say_r < 0 ? strerrorname_np(say_e) : "");                      \
    } while (0)

static inline void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        _exit(2);
    }
}

static inline int listening(struct sockaddr_in *a)
{
    socklen_t len = sizeof *a;
    memset(a, 0, sizeof *a);
    a->sin_family = AF_INET;
    a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int l = socket(AF_INET, SOCK_STREAM, 0);
    must(l >= 0, "socket");
    must(bind(l, (struct sockaddr *)a, len) == 0, "bind");
    must(listen(l, 16) == 0, "listen");
    must(getsockname(l, (struct sockaddr *)a, &len) == 0, "getsockname");
    return l;
}

/* A connection to ourselves: pair[0] the client's end, pair[1] the server's. */
static inline void connected(int pair[2])
{
    struct sockaddr_in a;
    int l = listening(&a);
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    must(pair[0] >= 0, "socket");
    must(connect(pair[0], (struct sockaddr *)&a, sizeof a) == 0, "connect");
    pair[1] = accept(l, NULL, NULL);
    must(pair[1] >= 0, "accept");
    close(l);
}

/* What arrives on `fd` until `n` bytes or its end, as text. */
static inline const char *arrived(int fd, size_t n)
{
    static char text[8192];
    size_t got = 0;
    while (got < n && got < sizeof text - 1) {
        ssize_t r = recv(fd, text + got, (n < sizeof text ? n : sizeof text - 1) - got, 0);
        if (r <= 0)
            break;
        got += (size_t)r;
    }
    text[got] = 0;
    return text;
}

/* Nothing has arrived. */
static inline int nothing_on(int fd)
{
    char c;
    return recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
}

static inline void pause_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

static inline void pause_ms(long ms)
{
    pause_us(ms * 1000);
}

/* Waits, a bounded time, until that thread of ours sleeps. */
static inline void wait_asleep(const volatile int *tid)
{
    for (int i = 0, calm = 0; i < 1000 && calm < 5; i++) {
        char name[64], text[256] = "";
        snprintf(name, sizeof name, "/proc/self/task/%d/stat", *tid);
        int fd = open(name, O_RDONLY);
        if (fd >= 0) {
            ssize_t n = read(fd, text, sizeof text - 1);
            text[n > 0 ? n : 0] = 0;
            close(fd);
        }
        char *end = strrchr(text, ')');
        calm = end && end[2] == 'S' ? calm + 1 : 0;
        pause_ms(5);
    }
}

static inline int run_tests(const struct test *tests, size_t n, int argc, char **argv)
{
    for (size_t i = 0; i < n; i++) {
        if (argc == 2 && strcmp(argv[1], "list") == 0)
            printf("%s %s\n", tests[i].name, tests[i].path);
        if (argc == 2 && strcmp(argv[1], tests[i].name) == 0) {
            must(dup2(1, TRANSCRIPT) == TRANSCRIPT, "dup2");
            tests[i].run();
            say("done");
            return 0;
        }
    }
    return argc == 2 && strcmp(argv[1], "list") == 0 ? 0 : 2;
}

#endif

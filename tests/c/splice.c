/* splice, tee, vmsplice, sendfile and copy_file_range with sockets on one side. */
#include "common.h"
#include <sys/sendfile.h>
#include <sys/time.h>
#include <sys/uio.h>

static int c, s, in, out;

static void make_all(void)
{
    int p[2];
    connected(p);
    c = p[0];
    s = p[1];
    must(pipe(p) == 0, "pipe");
    out = p[0];
    in = p[1];
}

static const char *piped(size_t n)
{
    static char text[8192];
    ssize_t r = read(out, text, n);
    text[r > 0 ? r : 0] = 0;
    return text;
}

static void from_socket_to_pipe(void)
{
    make_all();
    send(c, "0123456789", 10, 0);
    SAY(splice(s, NULL, in, NULL, 4, 0));
    say("%s", piped(100));
    SAY(splice(s, NULL, in, NULL, 100, SPLICE_F_MOVE | SPLICE_F_MORE));
    say("%s", piped(100));
    fcntl(s, F_SETFL, O_NONBLOCK);
    SAY(splice(s, NULL, in, NULL, 100, 0));
    SAY(splice(s, NULL, in, NULL, 100, SPLICE_F_NONBLOCK));
    SAY(splice(s, NULL, in, NULL, 0, 0));
    shutdown(c, SHUT_WR);
    struct pollfd w = {s, POLLIN, 0};
    poll(&w, 1, 5000);
    SAY(splice(s, NULL, in, NULL, 100, 0));
    SAY(splice(s, NULL, in, NULL, 100, 0));
}

static void from_pipe_to_socket(void)
{
    make_all();
    write(in, "0123456789", 10);
    SAY(splice(out, NULL, s, NULL, 4, 0));
    say("%s", arrived(c, 4));
    SAY(splice(out, NULL, s, NULL, 100, SPLICE_F_MORE));
    say("%s", arrived(c, 6));
    SAY(splice(out, NULL, s, NULL, 100, SPLICE_F_NONBLOCK));
    fcntl(out, F_SETFL, O_NONBLOCK);
    SAY(splice(out, NULL, s, NULL, 100, 0));
    close(in);
    SAY(splice(out, NULL, s, NULL, 100, 0));
}

static void errors(void)
{
    make_all();
    off_t o = 0;
    int q[2];
    connected(q);
    send(c, "abc", 3, 0);
    write(in, "abc", 3);
    SAY(splice(s, &o, in, NULL, 10, 0));
    SAY(splice(s, NULL, in, &o, 10, 0));
    SAY(splice(out, &o, s, NULL, 10, 0));
    SAY(splice(out, NULL, s, &o, 10, 0));
    SAY(splice(s, NULL, c, NULL, 10, 0));
    SAY(splice(s, NULL, q[0], NULL, 10, 0));
    SAY(splice(s, NULL, in, NULL, 10, 0x1000));
    SAY(splice(s, NULL, out, NULL, 10, 0));
    SAY(splice(in, NULL, s, NULL, 10, 0));
    SAY(splice(s, NULL, -1, NULL, 10, 0));
    SAY(splice(-1, NULL, s, NULL, 10, 0));
    int file = fileno(tmpfile());
    SAY(splice(s, NULL, file, NULL, 10, 0));
    SAY(tee(s, in, 10, 0));
    SAY(tee(out, s, 10, 0));
    struct iovec v = {"x", 1};
    SAY(vmsplice(s, &v, 1, 0));
    SAY(copy_file_range(s, NULL, file, NULL, 10, 0));
    SAY(copy_file_range(file, NULL, s, NULL, 10, 0));
    SAY(sendfile(file, s, NULL, 10));
    SAY(sendfile(q[0], s, NULL, 10));
    SAY(sendfile(s, q[0], NULL, 10));
    SAY(sendfile(s, out, NULL, 10));
    SAY(sendfile(in, s, &o, 10));
    SAY(sendfile(in, s, NULL, 10));
    say("%s", piped(100));
}

static void ends(void)
{
    make_all();
    signal(SIGPIPE, SIG_IGN);
    send(c, "abc", 3, 0);
    close(out);
    SAY(splice(s, NULL, in, NULL, 10, 0));
    say("%s", arrived(s, 3));
    int p[2];
    must(pipe(p) == 0, "pipe");
    write(p[1], "xyz", 3);
    shutdown(s, SHUT_WR);
    SAY(splice(p[0], NULL, s, NULL, 10, 0));
}

static void full_pipe(void)
{
    make_all();
    fcntl(in, F_SETFL, O_NONBLOCK);
    static char block[4096];
    while (write(in, block, sizeof block) > 0)
        ;
    send(c, "abc", 3, 0);
    SAY(splice(s, NULL, in, NULL, 10, SPLICE_F_NONBLOCK));
    SAY(splice(s, NULL, in, NULL, 10, 0));
    say("still there %s", arrived(s, 3));
}

static void *write_later(void *unused)
{
    (void)unused;
    pause_ms(60);
    send(c, "later", 5, 0);
    pause_ms(60);
    write(in, "into the pipe", 13);
    return NULL;
}

static void blocking(void)
{
    make_all();
    int p[2];
    must(pipe(p) == 0, "pipe");
    pthread_t t;
    pthread_create(&t, NULL, write_later, NULL);
    SAY(splice(s, NULL, p[1], NULL, 100, 0));
    SAY(splice(out, NULL, s, NULL, 100, 0));
    pthread_join(t, NULL);
    say("%s", arrived(c, 13));
    struct timeval limit = {0, 50000};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    SAY(splice(s, NULL, p[1], NULL, 100, 0));
}

static unsigned char pattern(size_t i)
{
    return (unsigned char)(i * 7 + i / 251);
}

enum { TOTAL = 8 << 20 };

static void *pump(void *fd)
{
    static unsigned char block[50000];
    for (size_t done = 0; done < TOTAL;) {
        size_t n = TOTAL - done < sizeof block ? TOTAL - done : sizeof block;
        for (size_t i = 0; i < n; i++)
            block[i] = pattern(done + i);
        ssize_t r = send(*(int *)fd, block, n, 0);
        must(r > 0, "send");
        done += (size_t)r;
    }
    shutdown(*(int *)fd, SHUT_WR);
    return NULL;
}

static void *check(void *fd)
{
    static unsigned char block[50000];
    size_t done = 0, wrong = 0;
    ssize_t r;
    while ((r = recv(*(int *)fd, block, sizeof block, 0)) > 0)
        for (ssize_t i = 0; i < r; i++)
            wrong += block[i] != pattern(done++);
    say("%zu bytes, %zu wrong", done, wrong);
    return NULL;
}

/* A proxy: from one connection through a pipe to another. */
static void proxy(void)
{
    make_all();
    int q[2];
    connected(q);
    pthread_t from, to;
    pthread_create(&from, NULL, pump, &c);
    pthread_create(&to, NULL, check, &q[1]);
    ssize_t r;
    while ((r = splice(s, NULL, in, NULL, 1 << 20, SPLICE_F_MOVE)) > 0)
        while (r > 0) {
            ssize_t w = splice(out, NULL, q[0], NULL, (size_t)r, SPLICE_F_MOVE);
            must(w > 0, "splice");
            r -= w;
        }
    say("end %zd", r);
    shutdown(q[0], SHUT_WR);
    pthread_join(from, NULL);
    pthread_join(to, NULL);
}

static const struct test TESTS[] = {
    {"from_socket_to_pipe", "user", from_socket_to_pipe},
    {"from_pipe_to_socket", "user", from_pipe_to_socket},
    {"errors", "user", errors},
    {"ends", "user", ends},
    {"full_pipe", "user", full_pipe},
    {"blocking", "user", blocking},
    {"proxy", "user", proxy},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

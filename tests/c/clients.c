/* A client that has connected before: with no descriptor left, what it has already it can use as ever; and in several threads. */
#include "common.h"
#include <sys/resource.h>

enum { LIMIT = 200, SOCKETS = 20, BEFORE = 100 };

static struct sockaddr_in address;

static void connects_and_closes(int l)
{
    for (int i = 0; i < BEFORE; i++) {
        int c = socket(AF_INET, SOCK_STREAM, 0);
        must(c >= 0 && connect(c, (void *)&address, sizeof address) == 0, "connect");
        int s = accept(l, NULL, NULL);
        must(s >= 0, "accept");
        close(c);
        close(s);
    }
}

/* Each one becomes something: a connection, a listener, one that is refused. */
static void use(int fd, int what)
{
    struct sockaddr_in any = {.sin_family = AF_INET}, nobody = address;
    any.sin_addr.s_addr = nobody.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    nobody.sin_port = htons(9);
    switch (what) {
    case 0:
        SAY(connect(fd, (void *)&address, sizeof address));
        SAY(send(fd, "x", 1, MSG_NOSIGNAL));
        break;
    case 1:
        SAY(bind(fd, (void *)&any, sizeof any));
        SAY(listen(fd, 1));
        break;
    default:
        SAY(connect(fd, (void *)&nobody, sizeof nobody));
    }
}

static void no_descriptor_is_left(void)
{
    struct rlimit limit;
    must(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = LIMIT;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
    int l = listening(&address), fds[SOCKETS];
    connects_and_closes(l);
    for (int i = 0; i < SOCKETS; i++)
        must((fds[i] = socket(AF_INET, SOCK_STREAM, 0)) >= 0, "socket");
    while (open("/dev/null", O_RDONLY) >= 0)
        ;
    say("%s", strerrorname_np(errno));
    for (int i = 0; i < SOCKETS; i++)
        use(fds[i], i % 3);
}

enum { ROUNDS = 1000 };

/* Each duplicate makes a connection's socket its own, with its port, so that the next connection needs another one. */
static void *duplicates(void *listener)
{
    int l = *(int *)listener;
    for (int i = 0; i < ROUNDS; i++) {
        int c = socket(AF_INET, SOCK_STREAM, 0);
        must(c >= 0 && connect(c, (void *)&address, sizeof address) == 0, "connect");
        int d = dup(c), s = accept(l, NULL, NULL);
        must(d >= 0 && s >= 0, "dup, accept");
        close(c);
        must(send(d, "x", 1, MSG_NOSIGNAL) == 1, "send");
        close(d);
        close(s);
    }
    return NULL;
}

static void threads_do_not_wait_for_each_other(void)
{
    int l = listening(&address);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        must(pthread_create(&threads[i], NULL, duplicates, &l) == 0, "pthread_create");
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    int next = open("/dev/null", O_RDONLY);
    say("none was left open: %d", next - l);
}

static const struct test TESTS[] = {
    {"threads_do_not_wait_for_each_other", "user", threads_do_not_wait_for_each_other},
    {"no_descriptor_is_left", "any", no_descriptor_is_left},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

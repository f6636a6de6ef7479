/* Options that are on or off: set, asked for, and seen by whoever has the same socket. After a process's first connection, those that follow
 * share a placeholder, until one does something else with its socket than to connect it: so there is one listener, and that comes first. */
#include "common.h"
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

static const struct {
    const char *name;
    int level, option;
} SWITCHES[] = {
    {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY},
    {"TCP_CORK", IPPROTO_TCP, TCP_CORK},
    {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE},
    {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR},
};
enum { N = sizeof SWITCHES / sizeof *SWITCHES };

static struct sockaddr_in at;
static int l, fds[2];

static void connects(int c)
{
    must(connect(c, (void *)&at, sizeof at) == 0, "connect");
    fds[0] = c;
    fds[1] = accept(l, NULL, NULL);
    must(fds[1] >= 0, "accept");
}

static void begin(void)
{
    l = listening(&at);
    for (int i = 0; i < 2; i++) {
        connects(socket(AF_INET, SOCK_STREAM, 0));
        close(fds[0]);
        close(fds[1]);
    }
}

static int is_on(int fd, int i)
{
    int value = -1;
    socklen_t len = sizeof value;
    must(getsockopt(fd, SWITCHES[i].level, SWITCHES[i].option, &value, &len) == 0 && len == sizeof value, "getsockopt");
    return value;
}

static int put(int fd, int i, int value)
{
    return setsockopt(fd, SWITCHES[i].level, SWITCHES[i].option, &value, sizeof value);
}

static void tell(const char *whose, int fd)
{
    for (int i = 0; i < N; i++)
        say("%s: %s %d", whose, SWITCHES[i].name, is_on(fd, i));
    say("%s: O_NONBLOCK %d", whose, (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
}

/* All values, before and after connect(2), and lengths that are none. */
static void on_and_off(void)
{
    static const int values[] = {1, 0, 2, -1, 0, 1};
    begin();
    int c = socket(AF_INET, SOCK_STREAM, 0);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) {
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                SAY(put(c, i, values[v]));
                say("%s after %d: %d", SWITCHES[i].name, values[v], is_on(c, i));
            }
            long wide = 1L << 32;
            SAY(setsockopt(c, SWITCHES[i].level, SWITCHES[i].option, &wide, sizeof wide));
            say("%s after a wide 0: %d", SWITCHES[i].name, is_on(c, i));
            SAY(setsockopt(c, SWITCHES[i].level, SWITCHES[i].option, &wide, 3));
            SAY(setsockopt(c, SWITCHES[i].level, SWITCHES[i].option, NULL, sizeof wide));
            SAY(put(c, i, i % 2));
            char byte = 7;
            socklen_t len = 1;
            SAY(getsockopt(c, SWITCHES[i].level, SWITCHES[i].option, &byte, &len));
            say("one byte of it: %d of %u", byte, len);
        }
        tell("socket", c);
        if (round == 0)
            connects(c);
    }
    SAY(send(c, "abc", 3, 0));
    say("arrived: %s", arrived(fds[1], 3));
}

/* O_NONBLOCK in all the ways there are to set it, before and after connect(2). */
static void blocking_or_not(void)
{
    char byte;
    int on = 1, off = 0;
    begin();
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK) {
        int c = socket(AF_INET, SOCK_STREAM | type, 0);
        say("flags %x", fcntl(c, F_GETFL));
        SAY(fcntl(c, F_SETFL, O_NONBLOCK));
        say("flags %x", fcntl(c, F_GETFL));
        SAY(fcntl(c, F_SETFL, fcntl(c, F_GETFL) & ~O_NONBLOCK));
        say("flags %x", fcntl(c, F_GETFL));
        SAY(ioctl(c, FIONBIO, &on));
        say("flags %x", fcntl(c, F_GETFL));
        int r = connect(c, (void *)&at, sizeof at);
        say("connect %d %s", r, strerrorname_np(errno));
        int s = accept(l, NULL, NULL);
        struct pollfd writable = {c, POLLOUT, 0};
        SAY(poll(&writable, 1, 10000));
        SAY(recv(c, &byte, 1, 0));
        SAY(ioctl(c, FIONBIO, &off));
        say("flags %x", fcntl(c, F_GETFL));
        SAY(fcntl(c, F_SETFL, O_NONBLOCK));
        SAY(recv(c, &byte, 1, 0));
        int copy = dup(c);
        say("flags of a copy %x", fcntl(copy, F_GETFL));
        SAY(fcntl(copy, F_SETFL, 0));
        say("flags %x", fcntl(c, F_GETFL));
        close(copy);
        close(c);
        close(s);
    }
}

/* A copy has what the socket had, and from then on they are the same. */
static void of_a_copy(void)
{
    begin();
    connects(socket(AF_INET, SOCK_STREAM, 0));
    for (int end = 0; end < 2; end++) {
        for (int i = 0; i < N; i += 2)
            SAY(put(fds[end], i, 1));
        int copy = dup(fds[end]);
        tell("copy", copy);
        for (int i = 0; i < N; i++)
            SAY(put(copy, i, i % 2));
        SAY(fcntl(copy, F_SETFL, O_NONBLOCK));
        tell("socket", fds[end]);
    }
}

/* A child's socket is its parent's. */
static void of_a_child(void)
{
    begin();
    connects(socket(AF_INET, SOCK_STREAM, 0));
    SAY(put(fds[0], 0, 1));
    SAY(put(fds[0], 2, 1));
    pid_t child = fork();
    if (child == 0) {
        tell("child", fds[0]);
        SAY(put(fds[0], 0, 0));
        SAY(put(fds[0], 1, 1));
        _exit(0);
    }
    must(waitpid(child, NULL, 0) == child, "waitpid");
    tell("parent", fds[0]);
}

/* What is passed on has them, too. */
static void of_one_that_is_passed_on(void)
{
    int way[2];
    char room[CMSG_SPACE(sizeof(int))] = "", byte = 'x';
    begin();
    connects(socket(AF_INET, SOCK_STREAM, 0));
    for (int i = 0; i < N; i++)
        SAY(put(fds[0], i, i != 1));
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, way) == 0, "socketpair");
    struct iovec one = {&byte, 1};
    struct msghdr m = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(c), &fds[0], sizeof(int));
    SAY(sendmsg(way[0], &m, 0));
    SAY(recvmsg(way[1], &m, 0));
    int got = -1;
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof got);
    tell("what was passed on", got);
}

/* A listener has what was set before it was one, and so have those who come to it. */
static void of_a_listener(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    begin();
    int c = socket(AF_INET, SOCK_STREAM, 0), other = socket(AF_INET, SOCK_STREAM, 0);
    for (int i = 0; i < N; i++)
        SAY(put(other, i, 1));
    SAY(bind(other, (void *)&a, sizeof a));
    SAY(listen(other, 4));
    tell("listener", other);
    must(getsockname(other, (void *)&a, &len) == 0, "getsockname");
    SAY(connect(c, (void *)&a, sizeof a));
    int s = accept(other, NULL, NULL);
    tell("accepted", s);
    SAY(put(s, 0, 0));
    tell("accepted", s);
    tell("listener", other);
}

static int here, go;

static void *sets(void *none)
{
    __atomic_store_n(&here, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST))
        ;
    for (int i = 0; i < N; i++)
        put(fds[0], i, 1);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    return none;
}

/* One thread sets them while another one makes the socket a file of its own. */
static void at_once(void)
{
    long lost = 0;
    begin();
    for (int round = 0; round < 600; round++) {
        pthread_t other;
        connects(socket(AF_INET, SOCK_STREAM, 0));
        here = go = 0;
        must(pthread_create(&other, NULL, sets, NULL) == 0, "pthread_create");
        while (!__atomic_load_n(&here, __ATOMIC_SEQ_CST))
            sched_yield();
        __atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
        for (int spin = 0; spin < round % 60 * 20; spin++)
            __atomic_load_n(&go, __ATOMIC_SEQ_CST);
        int copy = dup(fds[0]);
        pthread_join(other, NULL);
        for (int i = 0; i < N; i++)
            lost += !is_on(fds[0], i) + !is_on(copy, i);
        lost += !(fcntl(fds[0], F_GETFL) & O_NONBLOCK) + !(fcntl(copy, F_GETFL) & O_NONBLOCK);
        close(copy);
        close(fds[0]);
        close(fds[1]);
    }
    say("lost: %ld", lost);
}

static const struct test TESTS[] = {
    {"on_and_off", "user", on_and_off},
    {"blocking_or_not", "user", blocking_or_not},
    {"of_a_copy", "any", of_a_copy},
    {"of_a_child", "any", of_a_child},
    {"of_one_that_is_passed_on", "any", of_one_that_is_passed_on},
    {"of_a_listener", "any", of_a_listener},
    {"at_once", "any", at_once},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

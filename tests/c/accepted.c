/* Accepted connections one after the other: each begins as a copy of its listener, whatever was done to the one before. */
#include "common.h"
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/stat.h>

static struct sockaddr_in address;

static int client(void)
{
    int c = socket(AF_INET, SOCK_STREAM, 0);
    must(c >= 0 && connect(c, (void *)&address, sizeof address) == 0, "connect");
    return c;
}

static int option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof value;
    must(getsockopt(fd, level, name, &value, &len) == 0, "getsockopt");
    return value;
}

static void set(int fd, int level, int name, int value)
{
    must(setsockopt(fd, level, name, &value, sizeof value) == 0, "setsockopt");
}

/* What one can see of a new one. */
static void describe(int l, int s)
{
    struct linger linger;
    struct timeval time;
    socklen_t len = sizeof linger;
    must(getsockopt(s, SOL_SOCKET, SO_LINGER, &linger, &len) == 0, "SO_LINGER");
    len = sizeof time;
    must(getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &time, &len) == 0, "SO_RCVTIMEO");
    say("number %d flags %x %x nodelay %d cork %d keepalive %d idle %d reuse %d tos %d linger %d %d timeout %ld", s - l,
        fcntl(s, F_GETFL) & ~O_LARGEFILE, fcntl(s, F_GETFD), option(s, IPPROTO_TCP, TCP_NODELAY),
        option(s, IPPROTO_TCP, TCP_CORK), option(s, SOL_SOCKET, SO_KEEPALIVE), option(s, IPPROTO_TCP, TCP_KEEPIDLE),
        option(s, SOL_SOCKET, SO_REUSEADDR), option(s, IPPROTO_IP, IP_TOS), linger.l_onoff, linger.l_linger,
        (long)time.tv_sec);
}

/* It carries bytes both ways, and ends. */
static ssize_t use_quietly(int c, int s)
{
    char room[16];
    must(send(c, "there", 5, 0) == 5 && recv(s, room, sizeof room, 0) == 5, "there");
    must(send(s, "and back", 8, 0) == 8 && recv(c, room, sizeof room, 0) == 8, "back");
    close(s);
    ssize_t end = recv(c, room, sizeof room, 0);
    close(c);
    return end;
}

static void use(int c, int s)
{
    say("end %zd", use_quietly(c, s));
}

static void wear(int s, int round)
{
    struct linger linger = {1, 7};
    struct timeval time = {.tv_sec = 9};
    switch (round % 8) {
    case 1:
        set(s, IPPROTO_TCP, TCP_NODELAY, 1);
        set(s, SOL_SOCKET, SO_KEEPALIVE, 1);
        break;
    case 2:
        set(s, IPPROTO_TCP, TCP_CORK, 1);
        set(s, IPPROTO_TCP, TCP_KEEPIDLE, 77);
        break;
    case 3:
        must(setsockopt(s, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0, "SO_LINGER");
        must(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0, "SO_RCVTIMEO");
        break;
    case 4:
        set(s, IPPROTO_IP, IP_TOS, 16);
        break;
    case 5:
        must(fcntl(s, F_SETFL, O_NONBLOCK) == 0, "F_SETFL");
        break;
    case 6:
        must(fcntl(s, F_SETFL, O_NONBLOCK | O_ASYNC) == 0 && fcntl(s, F_SETFL, 0) == 0, "F_SETFL");
        break;
    }
}

static void each_is_as_its_listener(void)
{
    int l = listening(&address);
    set(l, SOL_SOCKET, SO_REUSEADDR, 1);
    for (int round = 0; round < 40; round++) {
        if (round == 16)
            set(l, IPPROTO_TCP, TCP_NODELAY, 1);
        if (round == 24) {
            set(l, IPPROTO_TCP, TCP_NODELAY, 0);
            set(l, IPPROTO_TCP, TCP_KEEPIDLE, 55);
        }
        int c = client();
        int s = accept4(l, NULL, NULL, (round & 1 ? SOCK_NONBLOCK : 0) | (round & 2 ? SOCK_CLOEXEC : 0));
        describe(l, s);
        wear(s, round);
        use(c, s);
    }
    close(l);
}

static void a_waiting_call_gets_one_too(void)
{
    int l = listening(&address);
    for (int round = 0; round < 6; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            pause_ms(100);
            int c = client();
            char room[16];
            must(send(c, "there", 5, 0) == 5 && recv(c, room, sizeof room, 0) == 8, "client");
            _exit(recv(c, room, sizeof room, 0) != 0);
        }
        int s = accept4(l, NULL, NULL, round & 1 ? SOCK_CLOEXEC : 0), status;
        describe(l, s);
        wear(s, round % 5);
        char room[16];
        must(recv(s, room, sizeof room, 0) == 5 && send(s, "and back", 8, 0) == 8, "server");
        close(s);
        must(waitpid(pid, &status, 0) == pid, "waitpid");
        say("client %d", status);
    }
    close(l);
}

static void one_with_another_descriptor_lives_on(void)
{
    int l = listening(&address);
    for (int round = 0; round < 6; round++) {
        int c = client(), s = accept(l, NULL, NULL), d = round & 1 ? dup(s) : fcntl(s, F_DUPFD_CLOEXEC, 40);
        close(s);
        int c2 = client(), s2 = accept(l, NULL, NULL);
        struct stat a, b;
        must(fstat(d, &a) == 0 && fstat(s2, &b) == 0, "fstat");
        say("apart %d, socket %d", a.st_ino != b.st_ino, S_ISSOCK(b.st_mode));
        set(d, IPPROTO_TCP, TCP_NODELAY, 1);
        describe(l, s2);
        use(c2, s2);
        use(c, d);
    }
    close(l);
}

static void one_that_a_child_has_lives_on(void)
{
    int l = listening(&address);
    for (int round = 0; round < 4; round++) {
        int c = client(), s = accept(l, NULL, NULL), status;
        pid_t pid = fork();
        if (pid == 0) {
            char room[16];
            must(recv(s, room, sizeof room, 0) == 5 && send(s, "and back", 8, 0) == 8, "child");
            _exit(0);
        }
        close(s);
        int c2 = client(), s2 = accept(l, NULL, NULL);
        describe(l, s2);
        use(c2, s2);
        char room[16];
        SAY(send(c, "there", 5, 0));
        SAY(recv(c, room, sizeof room, 0));
        must(waitpid(pid, &status, 0) == pid && status == 0, "waitpid");
        SAY(recv(c, room, sizeof room, 0));
        close(c);
    }
    close(l);
}

/* A set is told of the new connection, not of the old one that had its number. */
static void sets_tell_them_apart(void)
{
    int l = listening(&address), ep = epoll_create1(0);
    for (uint64_t round = 0; round < 6; round++) {
        int c = client(), s = accept(l, NULL, NULL);
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.u64 = round};
        SAY(epoll_ctl(ep, EPOLL_CTL_ADD, s, &event));
        SAY(epoll_wait(ep, &event, 1, 0));
        must(send(c, "x", 1, 0) == 1, "send");
        SAY(epoll_wait(ep, &event, 1, 5000));
        say("of %d: %x", (int)event.data.u64, event.events);
        char room[4];
        must(recv(s, room, 1, 0) == 1, "recv");
        close(s);
        SAY(epoll_wait(ep, &event, 1, 0));
        close(c);
    }
    close(l);
}

static atomic_int done;

/* A socket that is shared by fork before it is connected is the kernel's for good: no fork in between. */
static pthread_rwlock_t unconnected = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static int client_between_forks(void)
{
    pthread_rwlock_rdlock(&unconnected);
    int c = client();
    pthread_rwlock_unlock(&unconnected);
    return c;
}

static pid_t fork_between_clients(void)
{
    pthread_rwlock_wrlock(&unconnected);
    pid_t pid = fork();
    if (pid != 0)
        pthread_rwlock_unlock(&unconnected);
    return pid;
}

/* Options that make the library replace the files of connections, whose numbers are closed meanwhile. */
static void *accepts(void *listener)
{
    int l = *(int *)listener;
    for (int round = 0; round < 2000; round++) {
        int c = client_between_forks(), s = accept4(l, NULL, NULL, SOCK_CLOEXEC);
        if (round & 1)
            set(s, IPPROTO_TCP, TCP_NODELAY, 1);
        if (round & 2)
            set(s, IPPROTO_TCP, TCP_QUICKACK, 1);
        use_quietly(c, s);
    }
    done++;
    return NULL;
}

static void *forks(void *unused)
{
    for (int round = 0; done < 2; round++) {
        int status;
        pid_t pid = round % 16 ? vfork() : fork_between_clients();
        if (pid == 0)
            _exit(0);
        must(waitpid(pid, &status, 0) == pid && status == 0, "waitpid");
    }
    return unused;
}

/* Sets options under numbers that other threads close. */
static void *meddles(void *unused)
{
    for (int round = 0; done < 2; round++)
        for (int fd = 3; fd < 16; fd++) {
            int on = round & 1;
            setsockopt(fd, IPPROTO_TCP, round & 2 ? TCP_NODELAY : TCP_QUICKACK, &on, sizeof on);
        }
    return unused;
}

/* A number that was a connection's a moment ago is what was opened last under it, and stays that. */
static void *opens(void *unused)
{
    struct stat own, now;
    must(stat("/dev/null", &own) == 0, "stat");
    while (done < 2) {
        int fds[4];
        for (int i = 0; i < 4; i++)
            fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int i = 0; i < 4; i++) {
            must(fds[i] >= 0 && fstat(fds[i], &now) == 0 && now.st_rdev == own.st_rdev, "another file");
            must(close(fds[i]) == 0, "close");
        }
    }
    return unused;
}

static void numbers_stay_whose_they_are(void)
{
    int l = listening(&address);
    pthread_t threads[5];
    void *(*const calls[5])(void *) = {accepts, accepts, forks, meddles, opens};
    for (int i = 0; i < 5; i++)
        must(pthread_create(&threads[i], NULL, calls[i], &l) == 0, "pthread_create");
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    int next = open("/dev/null", O_RDONLY);
    say("none was left open: %d", next - l);
    close(next);
    close(l);
}

static const struct test TESTS[] = {
    {"each_is_as_its_listener", "user", each_is_as_its_listener},
    {"a_waiting_call_gets_one_too", "user", a_waiting_call_gets_one_too},
    {"one_with_another_descriptor_lives_on", "user", one_with_another_descriptor_lives_on},
    {"one_that_a_child_has_lives_on", "user", one_that_a_child_has_lives_on},
    {"sets_tell_them_apart", "user", sets_tell_them_apart},
    {"numbers_stay_whose_they_are", "user", numbers_stay_whose_they_are},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

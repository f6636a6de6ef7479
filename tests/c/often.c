/* Clients that connect to one place again and again: after a few times they do not wait for the coordinator. What such a client sees when the
 * listener is closed, moved, shared, or full, is as ever. The server is another process, which does what it is told: a client that has the
 * listener itself always waits. */
#include "common.h"

enum { OFTEN = 40, PLACES = 6 };

static struct sockaddr_in at[PLACES];
static int listeners[PLACES], commands[2], replies[2];
static pid_t server;

static int listens(struct sockaddr_in *a)
{
    int l = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(l, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    must(l >= 0 && bind(l, (void *)a, sizeof *a) == 0 && listen(l, 256) == 0, "listen");
    return l;
}

/* A connection that waits, and its client sends something: answered with the client's port. 0: none waits. */
static int serves(int l)
{
    struct sockaddr_in peer;
    socklen_t len = sizeof peer;
    char byte;
    int s = accept(l, (void *)&peer, &len);
    if (s < 0)
        return 0;
    if (recv(s, &byte, 1, 0) == 1)
        send(s, &peer.sin_port, sizeof peer.sin_port, 0);
    must(recv(s, &byte, 1, 0) <= 0, "an end");
    close(s);
    return 1;
}

/* `s N`: serves the next at place N. `w N`: the same, when poll(2) says so. `d N`: all that wait; says how many. `c N`: closes it. `o N`: opens it
 * again. `q N`: makes its queue short. `b N`: another listener, at the place of N's. */
static void follows(void)
{
    unsigned char order[2];
    while (read(commands[0], order, 2) == 2) {
        int *l = &listeners[order[1]];
        unsigned char n = 0;
        struct pollfd p = {*l, POLLIN, 0};
        switch (order[0]) {
        case 'w':
            must(poll(&p, 1, 20000) == 1, "poll");
            serves(*l);
            continue;
        case 's':
            serves(*l);
            continue;
        case 'd':
            fcntl(*l, F_SETFL, O_NONBLOCK);
            while (serves(*l))
                n++;
            fcntl(*l, F_SETFL, 0);
            break;
        case 'c':
            close(*l);
            break;
        case 'o':
            *l = listens(&at[order[1]]);
            break;
        case 'b':
            listeners[PLACES - 1] = listens(&at[order[1]]);
            break;
        case 'q':
            listen(*l, 3);
            break;
        }
        must(write(replies[1], &n, 1) == 1, "write");
    }
}

static void tells(char what, int place)
{
    char order[2] = {what, (char)place};
    must(write(commands[1], order, 2) == 2, "write");
}

static int asks(char what, int place)
{
    unsigned char n;
    tells(what, place);
    must(read(replies[0], &n, 1) == 1, "read");
    return n;
}

static void opens(int places)
{
    socklen_t len = sizeof *at;
    for (int i = 0; i < places; i++) {
        at[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        listeners[i] = listens(&at[i]);
        must(getsockname(listeners[i], (void *)&at[i], &len) == 0, "getsockname");
    }
    must(pipe(commands) == 0 && pipe(replies) == 0, "pipe");
}

/* What follows is the client, a child; this process serves it until it is gone. */
static void begin(int places)
{
    int status;
    opens(places);
    pid_t client = fork();
    if (client != 0) {
        close(commands[1]);
        follows();
        must(waitpid(client, &status, 0) == client, "waitpid");
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 9);
    }
    for (int i = 0; i < places; i++)
        close(listeners[i]);
}

static int connects(int place)
{
    int c = socket(AF_INET, SOCK_STREAM, 0);
    must(c >= 0, "socket");
    if (connect(c, (void *)&at[place], sizeof *at) != 0) {
        int e = errno;
        close(c);
        errno = e;
        return -1;
    }
    return c;
}

/* A question and its answer: the port that each end takes for the client's. */
static int is_served(int c)
{
    struct sockaddr_in own;
    socklen_t len = sizeof own;
    in_port_t port = 0;
    char byte = 'x';
    must(getsockname(c, (void *)&own, &len) == 0, "getsockname");
    int good = send(c, &byte, 1, 0) == 1 && recv(c, &port, sizeof port, 0) == sizeof port && port == own.sin_port;
    close(c);
    return good;
}

static int many(char how, int place)
{
    int good = 0;
    for (int i = 0; i < OFTEN; i++) {
        tells(how, place);
        good += is_served(connects(place));
    }
    return good;
}

static void one_after_the_other(void)
{
    begin(1);
    say("good: %d", many('s', 0));
}

/* More places than are remembered. */
static void several_places(void)
{
    int good = 0;
    begin(PLACES);
    for (int round = 0; round < OFTEN; round++)
        for (int i = 0; i < PLACES; i++) {
            tells('s', i);
            good += is_served(connects(i));
        }
    for (int i = 0; i < PLACES; i++)
        good += many('s', i);
    say("good: %d", good);
}

/* Those who wait are reset, and who comes now is refused. */
static void closed(void)
{
    char byte;
    begin(1);
    many('s', 0);
    int waits[3] = {connects(0), connects(0), connects(0)};
    asks('c', 0);
    for (int i = 0; i < 5; i++)
        SAY(connects(0));
    for (int i = 0; i < 3; i++)
        SAY(recv(waits[i], &byte, 1, 0));
}

static void closed_and_opened_again(void)
{
    begin(1);
    for (int round = 0; round < 20; round++) {
        say("good: %d", many('s', 0));
        asks('c', 0);
        SAY(connects(0));
        asks('o', 0);
    }
}

/* A process's end is not heard of at once: who comes too early is reset. */
static void killed(void)
{
    int refused = 0;
    opens(1);
    server = fork();
    if (server == 0)
        follows();
    close(listeners[0]);
    say("good: %d", many('s', 0));
    kill(server, SIGKILL);
    must(waitpid(server, NULL, 0) == server, "waitpid");
    for (int i = 0; i < 5000 && !refused; i++) {
        int c = connects(0);
        refused = c < 0 && errno == ECONNREFUSED;
        close(c);
        pause_ms(1);
    }
    say("refused: %d", refused);
}

/* Parent and child have their own. */
static void in_a_child(void)
{
    begin(1);
    say("before: %d", many('s', 0));
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            say("child: %d", many('s', 0));
            _exit(0);
        }
        must(waitpid(child, NULL, 0) == child, "waitpid");
        say("parent: %d", many('s', 0));
    }
}

static void *is_one_of_many(void *good)
{
    for (int i = 0; i < 10 * OFTEN; i++) {
        tells('s', 0);
        *(int *)good += is_served(connects(0));
    }
    return NULL;
}

static void in_threads(void)
{
    pthread_t threads[3];
    int good[3] = {0, 0, 0};
    begin(1);
    for (int i = 0; i < 3; i++)
        must(pthread_create(&threads[i], NULL, is_one_of_many, &good[i]) == 0, "pthread_create");
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    say("good: %d %d %d, waiting: %d", good[0], good[1], good[2], asks('d', 0));
}

/* Readiness comes for each. */
static void watched(void)
{
    begin(1);
    say("good: %d", many('w', 0));
    say("waiting: %d", asks('d', 0));
}

/* Nobody accepts for a while. */
static void in_the_queue(void)
{
    int c[100], good = 0;
    begin(1);
    many('s', 0);
    for (int i = 0; i < 100; i++)
        c[i] = connects(0);
    for (int i = 0; i < 100; i++) {
        tells('s', 0);
        good += is_served(c[i]);
    }
    say("good: %d", good);
}

/* A second listener at the place gets its share, and no client is lost when it goes. */
static void shared(void)
{
    int c[100];
    begin(1);
    say("alone: %d", many('s', 0));
    asks('b', 0);
    for (int i = 0; i < 100; i++) {
        c[i] = connects(0);
        must(shutdown(c[i], SHUT_WR) == 0, "shutdown");
    }
    pause_ms(50);
    int first = asks('d', 0), second = asks('d', PLACES - 1);
    say("both: %d, all: %d", first > 10 && second > 10, first + second);
    for (int i = 0; i < 100; i++)
        close(c[i]);
    asks('c', PLACES - 1);
    say("alone: %d", many('s', 0));
}

/* A short queue: all who got in are served. */
static void full(void)
{
    int c[12], in = 0;
    begin(1);
    many('s', 0);
    asks('q', 0);
    for (int i = 0; i < 12; i++) {
        c[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(c[i], (void *)&at[0], sizeof *at);
        in += poll(&(struct pollfd){c[i], POLLOUT, 0}, 1, 20) == 1;
        shutdown(c[i], SHUT_WR);
    }
    int served = asks('d', 0);
    say("served: %d", served >= 4 && served >= in);
}

/* Calls that ask how it went. */
static void non_blocking(void)
{
    begin(1);
    many('s', 0);
    struct sockaddr_in any = {.sin_family = AF_INET}, peer;
    socklen_t len = sizeof peer;
    int bound = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    SAY(bind(bound, (void *)&any, sizeof any));
    SAY(connect(bound, (void *)&at[0], sizeof *at));
    SAY(connect(c, (void *)&at[0], sizeof *at));
    SAY(poll(&(struct pollfd){c, POLLOUT, 0}, 1, 10000));
    SAY(connect(c, (void *)&at[0], sizeof *at));
    SAY(connect(c, (void *)&at[0], sizeof *at));
    SAY(getpeername(c, (void *)&peer, &len));
    say("same: %d", peer.sin_port == at[0].sin_port && peer.sin_addr.s_addr == at[0].sin_addr.s_addr);
}

/* A process that has the listener: who has connected is there. */
static void with_the_listener(void)
{
    struct sockaddr_in own;
    int l = listening(&own), good = 0;
    fcntl(l, F_SETFL, O_NONBLOCK);
    at[0] = own;
    for (int i = 0; i < 3 * OFTEN; i++) {
        int c = connects(0), s = accept(l, NULL, NULL);
        good += s >= 0 && poll(&(struct pollfd){l, POLLIN, 0}, 1, 0) == 0;
        close(c);
        close(s);
    }
    say("good: %d", good);
}

static const struct test TESTS[] = {
    {"one_after_the_other", "user", one_after_the_other},
    {"several_places", "user", several_places},
    {"closed", "any", closed},
    {"closed_and_opened_again", "any", closed_and_opened_again},
    {"killed", "any", killed},
    {"in_a_child", "user", in_a_child},
    {"in_threads", "user", in_threads},
    {"watched", "user", watched},
    {"in_the_queue", "user", in_the_queue},
    {"shared", "any", shared},
    {"full", "any", full},
    {"non_blocking", "any", non_blocking},
    {"with_the_listener", "user", with_the_listener},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

/* A connection that one thread has used for long, and that others use then, too: threads, relatives, handlers. Nothing is lost, cut or told
 * twice, and each one's messages stay in order. */
#include "common.h"
#include <sys/syscall.h>
#include <sys/time.h>

/* Enough to own a direction (docs/decisions.md, "Owners"), many, and many times. */
enum { OFTEN = 300, MANY = 20000, TIMES = 40, WRITERS = 26 };

/* A message: who, and the how-manieth of that one. */
struct message {
    uint32_t who, number;
};

/* A stream from fds[0] to fds[1]. */
static int fds[2];
/* How many of each have come; below 0: one was cut, lost or told twice. */
static long came[WRITERS];

static void sends(char who, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        struct message m = {(uint32_t)who, i};
        must(write(fds[0], &m, sizeof m) == sizeof m, "write");
    }
}

/* Reads until `n` have come. */
static void reads(long n)
{
    for (long i = 0; i < n; i++) {
        struct message m;
        size_t got = 0;
        while (got < sizeof m) {
            ssize_t r = read(fds[1], (char *)&m + got, sizeof m - got);
            must(r > 0, "read");
            got += (size_t)r;
        }
        if (m.who < 'a' || m.who >= 'a' + WRITERS) {
            say("cut");
            return;
        }
        long *count = &came[m.who - 'a'];
        *count = *count == (long)m.number ? *count + 1 : -1;
    }
}

static void *reader(void *n)
{
    reads(*(long *)n);
    return NULL;
}

static pthread_t start(void *(*run)(void *), void *what)
{
    pthread_t t;
    must(pthread_create(&t, NULL, run, what) == 0, "pthread_create");
    return t;
}

static void tell(void)
{
    for (int i = 0; i < WRITERS; i++)
        if (came[i])
            say("%c %ld", 'a' + i, came[i]);
    memset(came, 0, sizeof came);
}

static void *sends_often(void *first)
{
    sends('a', *(uint32_t *)first, OFTEN);
    return NULL;
}

static void in_turns(void)
{
    long n = 6 * OFTEN;
    connected(fds);
    pthread_t r = start(reader, &n);
    for (uint32_t i = 0; i < 6; i++) {
        uint32_t first = i * OFTEN;
        if (i % 2)
            pthread_join(start(sends_often, &first), NULL);
        else
            sends_often(&first);
    }
    pthread_join(r, NULL);
    tell();
}

static void *sends_many(void *who)
{
    sends(*(char *)who, 0, MANY);
    return NULL;
}

static void at_once(void)
{
    long n = OFTEN + 3 * MANY;
    pthread_t r = start(reader, &n);
    sends('a', 0, OFTEN);
    pthread_t b = start(sends_many, "b"), c = start(sends_many, "c");
    sends('a', OFTEN, MANY);
    pthread_join(b, NULL);
    pthread_join(c, NULL);
    pthread_join(r, NULL);
    tell();
}

static void threads_at_once(void)
{
    connected(fds);
    at_once();
}

static void threads_at_once_on_a_pipe(void)
{
    int p[2];
    must(pipe(p) == 0, "pipe");
    fds[0] = p[1];
    fds[1] = p[0];
    at_once();
}

static void *adds_up(void *sum)
{
    struct message m;
    while (recv(fds[1], &m, sizeof m, 0) == sizeof m && m.number != 0)
        *(uint64_t *)sum += m.number;
    return NULL;
}

static void readers_at_once(void)
{
    uint64_t sums[3] = {0};
    connected(fds);
    pthread_t first = start(adds_up, &sums[0]);
    sends('a', 1, OFTEN);
    pthread_t others[2] = {start(adds_up, &sums[1]), start(adds_up, &sums[2])};
    sends('a', OFTEN + 1, MANY);
    for (int i = 0; i < 3; i++)
        sends('z', 0, 1);
    pthread_join(first, NULL);
    pthread_join(others[0], NULL);
    pthread_join(others[1], NULL);
    say("%lu", (unsigned long)(sums[0] + sums[1] + sums[2]));
}

static pid_t child_sends(char who, uint32_t n)
{
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        sends(who, 0, n);
        _exit(0);
    }
    return pid;
}

static void relatives_at_once(void)
{
    long n = OFTEN + 3 * MANY;
    connected(fds);
    sends('a', 0, OFTEN);
    pid_t b = child_sends('b', MANY), c = child_sends('c', MANY);
    pthread_t r = start(reader, &n);
    sends('a', OFTEN, MANY);
    pthread_join(r, NULL);
    waitpid(b, NULL, 0);
    waitpid(c, NULL, 0);
    tell();
}

/* Wherever a relative dies, its messages are whole, and the others go on. It never fills the connection: the kernel, too, cuts a message
 * whose writer is killed while it waits for room. */
static void relatives_are_killed(void)
{
    const uint32_t unread = 4000;
    connected(fds);
    sends('a', 0, OFTEN);
    reads(OFTEN);
    for (uint32_t i = 0; i < TIMES; i++) {
        pid_t b = child_sends('b', 1000 + i + unread);
        reads(1000 + i);
        kill(b, SIGKILL);
        /* It may not be dead yet. */
        sends('a', OFTEN + 2 * i, 1);
        waitpid(b, NULL, 0);
        sends('a', OFTEN + 2 * i + 1, 1);
        while (came[0] > 0 && came[0] < OFTEN + 2 * (i + 1) && came[1] > 0)
            reads(1);
        if (came[0] < 0 || came[1] < 0)
            say("lost in round %u", i);
        came[1] = 0;
    }
    tell();
}

static volatile uint32_t handled;

static void sends_one(int signal)
{
    (void)signal;
    sends('h', handled++, 1);
}

static void *reads_the_rest(void *arg)
{
    (void)arg;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    while (came['z' - 'a'] == 0)
        reads(1);
    return NULL;
}

static void handlers_of_the_owner(void)
{
    struct sigaction act = {.sa_handler = sends_one, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    connected(fds);
    pthread_t r = start(reads_the_rest, NULL);
    sends('a', 0, OFTEN);
    sigaction(SIGALRM, &act, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    sends('a', OFTEN, 20 * MANY);
    setitimer(ITIMER_REAL, &never, NULL);
    sends('z', 0, 1);
    pthread_join(r, NULL);
    say("all of the handlers': %d, some: %d", came['h' - 'a'] == (long)handled, handled > 0);
    came['h' - 'a'] = 0;
    tell();
}

#ifdef __x86_64__
/* fork(2) as libc does not see it. */
static pid_t raw_fork(void)
{
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(SYS_fork) : "rcx", "r11", "memory");
    return (pid_t)r;
}
#else
#define raw_fork fork
#endif

/* Parent and child, whom libc and its handlers take for one and the same thread, send at once. */
static void a_child_that_nobody_heard_of(void)
{
    long n = OFTEN + 2 * MANY;
    connected(fds);
    sends('a', 0, OFTEN);
    pid_t b = raw_fork();
    if (b == 0) {
        sends('b', 0, MANY);
        syscall(SYS_exit_group, 0);
    }
    pthread_t r = start(reader, &n);
    sends('a', OFTEN, MANY);
    pthread_join(r, NULL);
    waitpid(b, NULL, 0);
    tell();
}

static const struct test TESTS[] = {
    {"in_turns", "user", in_turns},
    {"threads_at_once", "user", threads_at_once},
    {"threads_at_once_on_a_pipe", "any", threads_at_once_on_a_pipe},
    {"readers_at_once", "user", readers_at_once},
    {"relatives_at_once", "user", relatives_at_once},
    {"relatives_are_killed", "user", relatives_are_killed},
    {"handlers_of_the_owner", "user", handlers_of_the_owner},
    {"a_child_that_nobody_heard_of", "user", a_child_that_nobody_heard_of},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

/* Handlers that come while the program connects, accepts and closes, and do the same: none is lost, each sees what it came with and blocks what
 * it asked for; and whoever asks is told of the program's own. */
#include "common.h"
#include <setjmp.h>
#include <sys/time.h>
#include <sys/wait.h>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

/* Not in every standard's headers. */
void (*bsd_signal(int, void (*)(int)))(int);

enum { ROUNDS = 4000, VALUES = 3000 };

/* How many handlers may be in each other. */
enum { DEPTH = 3 };

/* A listener for the program, and one for handlers at each depth. */
static int outer, inner[DEPTH];
static struct sockaddr_in to_outer, to_inner[DEPTH];

static void listen_all(void)
{
    outer = listening(&to_outer);
    for (int i = 0; i < DEPTH; i++)
        inner[i] = listening(&to_inner[i]);
}

/* A whole connection with a byte. */
static int round_trip(int l, struct sockaddr_in *at)
{
    char byte = 0;
    int c = socket(AF_INET, SOCK_STREAM, 0);
    if (c < 0 || connect(c, (void *)at, sizeof *at) != 0)
        return 0;
    int s = accept(l, NULL, NULL);
    int done = s >= 0 && write(c, "x", 1) == 1 && read(s, &byte, 1) == 1 && byte == 'x';
    return close(c) == 0 && close(s) == 0 && done;
}

static int rounds(int n)
{
    int done = 0;
    while (n-- > 0)
        done += round_trip(outer, &to_outer);
    return done;
}

static void every(long us)
{
    struct itimerval often = {{0, us}, {0, us}};
    must(setitimer(ITIMER_REAL, &often, NULL) == 0, "setitimer");
}

static void catch(int signal, int flags, void *handler)
{
    struct sigaction act = {.sa_flags = flags};
    act.sa_sigaction = (void (*)(int, siginfo_t *, void *))handler;
    must(sigaction(signal, &act, NULL) == 0, "sigaction");
}

static volatile int handled, wrong, depth;

static void connects(int signal)
{
    (void)signal;
    if (depth >= DEPTH)
        return;
    int saved = errno, own = depth++;
    handled++;
    wrong += !round_trip(inner[own], &to_inner[own]);
    depth = own;
    errno = saved;
}

static void of_one_process(void)
{
    listen_all();
    catch(SIGALRM, SA_RESTART, connects);
    every(300);
    int done = rounds(ROUNDS);
    every(0);
    say("%d of %d, in handlers %d wrong of some: %d", done, ROUNDS, wrong, handled > 0);
}

/* The client's threads, which other threads interrupt. */
static volatile int ended;

static void *client(void *done)
{
    *(int *)done = rounds(ROUNDS);
    ended = 1;
    return NULL;
}

static void of_a_thread(void)
{
    int done;
    pthread_t t;
    listen_all();
    catch(SIGUSR1, SA_RESTART, connects);
    must(pthread_create(&t, NULL, client, &done) == 0, "pthread_create");
    while (!ended) {
        pthread_kill(t, SIGUSR1);
        pause_us(150);
    }
    pthread_join(t, NULL);
    say("%d of %d, in handlers %d wrong of some: %d", done, ROUNDS, wrong, handled > 0);
}

static volatile int last;
static volatile long sum;

static void adds(int signal, siginfo_t *info, void *context)
{
    (void)context;
    wrong += signal != SIGRTMIN + 1 || info->si_code != SI_QUEUE || info->si_pid != getppid();
    wrong += info->si_value.sival_int != last + 1;
    last = info->si_value.sival_int;
    sum += last;
}

/* Signals that carry something come each, in order. The child connects, the parent sends. */
static void values(void)
{
    listen_all();
    catch(SIGRTMIN + 1, SA_SIGINFO | SA_RESTART, adds);
    int begun[2];
    must(pipe(begun) == 0, "pipe");
    pid_t child = fork();
    if (child == 0) {
        int n = 1, done = rounds(1);
        must(write(begun[1], "x", 1) == 1, "write");
        for (; last < VALUES; n++)
            done += rounds(1);
        say("all %d, wrong %d, sum %ld", done == n, wrong, sum);
        exit(0);
    }
    char byte;
    must(read(begun[0], &byte, 1) == 1, "read");
    for (int i = 1; i <= VALUES; i++) {
        union sigval v = {.sival_int = i};
        while (sigqueue(child, SIGRTMIN + 1, v) != 0)
            must(errno == EAGAIN, "sigqueue");
        if (i % 3 == 0)
            pause_us(1);
    }
    waitpid(child, NULL, 0);
}

static uint64_t blocked(void)
{
    sigset_t now;
    uint64_t mask;
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    memcpy(&mask, &now, sizeof mask);
    return mask;
}

static volatile uint64_t in_handler;

static void looks(int signal)
{
    uint64_t mask = blocked();
    wrong += handled++ > 0 && mask != in_handler;
    in_handler = mask;
    (void)signal;
}

/* What is blocked in a handler, and afterwards, is what the program said. */
static void masks(void)
{
    sigset_t own;
    listen_all();
    sigemptyset(&own);
    sigaddset(&own, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &own, NULL);
    struct sigaction act = {.sa_handler = looks, .sa_flags = SA_RESTART};
    sigemptyset(&act.sa_mask);
    sigaddset(&act.sa_mask, SIGHUP);
    sigaction(SIGALRM, &act, NULL);
    every(200);
    uint64_t before = blocked();
    int done = 0, same = 1;
    for (int i = 0; i < ROUNDS; i++) {
        done += rounds(1);
        same &= blocked() == before;
    }
    every(0);
    say("%d, before %lx, same %d, in the handler %lx, wrong %d", done, (long)before, same, (long)in_handler, wrong);
}

/* Two signals, of which neither keeps the other out, nor itself. */
static void several(void)
{
    struct itimerval often = {{0, 270}, {0, 270}};
    listen_all();
    catch(SIGALRM, SA_NODEFER | SA_RESTART, connects);
    catch(SIGVTALRM, SA_RESTART, connects);
    every(310);
    setitimer(ITIMER_VIRTUAL, &often, NULL);
    int done = rounds(ROUNDS);
    every(0);
    setitimer(ITIMER_VIRTUAL, &(struct itimerval){0}, NULL);
    say("%d of %d, in handlers %d wrong of some: %d", done, ROUNDS, wrong, handled > 0);
}

static void counts(int signal)
{
    (void)signal;
    handled++;
}

/* A handler for one time, beside others. */
static void once(void)
{
    listen_all();
    catch(SIGALRM, SA_RESTART, connects);
    catch(SIGURG, SA_RESETHAND, counts);
    struct sigaction now;
    raise(SIGURG);
    raise(SIGURG);
    sigaction(SIGURG, NULL, &now);
    say("%d times, default now %d", handled, now.sa_handler == SIG_DFL);
    every(300);
    int done = rounds(ROUNDS);
    every(0);
    say("%d, wrong %d", done, wrong);
    handled = 0;
    SAY(sysv_signal(SIGURG, counts) == SIG_DFL);
    raise(SIGURG);
    raise(SIGURG);
    say("%d times", handled);
}

static void tell(const char *what, int signal)
{
    struct sigaction now;
    must(sigaction(signal, NULL, &now) == 0, "sigaction");
    const char *which = now.sa_handler == SIG_DFL    ? "default"
                        : now.sa_handler == SIG_IGN  ? "ignored"
                        : now.sa_handler == counts   ? "counts"
                        : now.sa_handler == connects ? "connects"
                        : now.sa_sigaction == adds   ? "adds"
                                                     : "something else";
    say("%s: %s, flags %x, itself %d, others %d", what, which, (unsigned)now.sa_flags & ~0x04000000u,
        sigismember(&now.sa_mask, signal), sigismember(&now.sa_mask, SIGHUP));
}

static void is_told(void)
{
    struct sigaction act = {.sa_handler = counts, .sa_flags = SA_NODEFER | SA_ONSTACK}, old = {0};
    sigaddset(&act.sa_mask, SIGHUP);
    tell("at first", SIGUSR1);
    SAY(sigaction(SIGUSR1, &act, &old));
    say("was the default: %d", old.sa_handler == SIG_DFL);
    tell("an action", SIGUSR1);
    act.sa_sigaction = adds;
    act.sa_flags = SA_SIGINFO;
    SAY(sigaction(SIGUSR1, &act, &old));
    say("was: %d, flags %x", old.sa_handler == counts, (unsigned)old.sa_flags & ~0x04000000u);
    tell("with information", SIGUSR1);
    say("was: %d", (void *)signal(SIGUSR1, SIG_IGN) == (void *)adds);
    tell("ignored", SIGUSR1);
    say("was: %d", signal(SIGUSR1, counts) == SIG_IGN);
    tell("by signal", SIGUSR1);
    SAY(siginterrupt(SIGUSR1, 1));
    tell("interrupts", SIGUSR1);
    say("was: %d", bsd_signal(SIGUSR1, connects) == counts);
    tell("still", SIGUSR1);
    SAY(siginterrupt(SIGUSR1, 0));
    say("was: %d", ssignal(SIGUSR1, counts) == connects);
    tell("no more", SIGUSR1);
    say("was: %d", sigset(SIGUSR1, connects) == counts);
    tell("by sigset", SIGUSR1);
    say("was: %d", sysv_signal(SIGUSR1, counts) == connects);
    tell("by sysv_signal", SIGUSR1);
    SAY(signal(SIGKILL, counts) == SIG_ERR);
    SAY(signal(0, counts) == SIG_ERR);
    SAY(signal(65, counts) == SIG_ERR);
    SAY(signal(32, counts) == SIG_ERR);
    SAY(signal(SIGUSR1, SIG_ERR) == SIG_ERR);
    SAY(sigaction(SIGSTOP, &act, NULL));
    SAY(sigaction(-1, NULL, &act));
    SAY(siginterrupt(-1, 1));
    tell("at last", SIGUSR1);
}

/* What another one finds, and gives back, is what was there. */
static void are_given_back(void)
{
    struct sigaction was, act = {.sa_handler = SIG_IGN};
    catch(SIGUSR1, SA_RESTART, counts);
    SAY(sigaction(SIGUSR1, &act, &was));
    raise(SIGUSR1);
    SAY(sigaction(SIGUSR1, &was, NULL));
    raise(SIGUSR1);
    say("%d", handled);
    tell("given back", SIGUSR1);
}

/* Children have their parent's handlers, those of a vfork are their own, and a program has none. */
static void of_children(void)
{
    listen_all();
    catch(SIGUSR1, SA_RESTART, counts);
    pid_t child = fork();
    if (child == 0) {
        tell("child", SIGUSR1);
        raise(SIGUSR1);
        say("%d", handled);
        exit(0);
    }
    waitpid(child, NULL, 0);
    if ((child = vfork()) == 0) {
        catch(SIGUSR1, 0, connects);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    tell("after a vfork", SIGUSR1);
    if ((child = vfork()) == 0) {
        signal(SIGUSR1, SIG_DFL);
        raise(SIGUSR1);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    say("ended by the signal: %d", WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);
    raise(SIGUSR1);
    say("%d", handled);
    every(300);
    catch(SIGALRM, SA_RESTART, connects);
    say("%d, wrong %d", rounds(ROUNDS), wrong);
    every(0);
}

static sigjmp_buf back;

static void jumps(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

/* A handler that leaves what it interrupted, wherever that is. */
static void that_jump(void)
{
    volatile int n = 0;
    listen_all();
    catch(SIGALRM, 0, jumps);
    if (sigsetjmp(back, 1) == 0 || ++n < 200) {
        struct itimerval soon = {{0, 0}, {0, 300 + 7 * n}};
        setitimer(ITIMER_REAL, &soon, NULL);
        for (;;) {
            int c = socket(AF_INET, SOCK_STREAM, 0);
            connect(c, (void *)&to_outer, sizeof to_outer);
            close(c);
            close(accept(outer, NULL, NULL));
        }
    }
    for (int fd = 3; fd < 4000; fd++)
        if (fd != TRANSCRIPT)
            close(fd);
    listen_all();
    say("%d jumps, then %d", n, rounds(10));
}

static const struct test TESTS[] = {
    {"of_one_process", "user", of_one_process},
    {"of_a_thread", "user", of_a_thread},
    {"values", "user", values},
    {"masks", "user", masks},
    {"several", "user", several},
    {"once", "user", once},
    {"is_told", "any", is_told},
    {"are_given_back", "any", are_given_back},
    {"of_children", "user", of_children},
    {"that_jump", "any", that_jump},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

/* Signals: which calls they end, which go on, what masks let through, and what handlers may do. */
#include "common.h"
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static int c, s, l, ep;
static struct sockaddr_in address;
static volatile int handled, tid;
static pthread_t blocked;

static void count(int signal)
{
    (void)signal;
    handled++;
}

static void catch(int flags, void (*handler)(int))
{
    struct sigaction act = {.sa_handler = handler, .sa_flags = flags};
    sigaction(SIGUSR1, &act, NULL);
    handled = 0;
}

static void make_all(void)
{
    int p[2];
    connected(p);
    c = p[0];
    s = p[1];
    l = listening(&address);
    ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = s};
    must(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e) == 0, "epoll_ctl");
}

static char room[1 << 20];

static long call_recv(void) { return recv(s, room, 100, 0); }
static long call_read(void) { return read(s, room, 100); }
static long call_recvmsg(void)
{
    struct iovec v = {room, 100};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    return recvmsg(s, &m, 0);
}
static long call_recv_timeout(void)
{
    struct timeval t = {20, 0};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    return recv(s, room, 100, 0);
}
static long call_waitall(void) { return recv(s, room, 5, MSG_WAITALL); }
static long call_accept(void) { return accept(l, NULL, NULL) < 0 ? -1 : 1; }
static long call_poll(void)
{
    struct pollfd w = {s, POLLIN, 0};
    return poll(&w, 1, 20000);
}
static long call_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s, &set);
    return select(s + 1, &set, NULL, NULL, NULL);
}
static long call_epoll_wait(void)
{
    struct epoll_event e;
    return epoll_wait(ep, &e, 1, -1);
}

static void *make_call(void *call)
{
    tid = (int)syscall(SYS_gettid);
    errno = 0;
    long r = ((long (*)(void))call)();
    say("the call gave %ld%s%s", r, r < 0 ? " " : "", r < 0 ? strerrorname_np(errno) : "");
    return NULL;
}

static void start(long (*call)(void))
{
    tid = 0;
    pthread_create(&blocked, NULL, make_call, (void *)call);
    while (tid == 0)
        pause_ms(1);
    wait_asleep(&tid);
}

static void interrupt(int times)
{
    for (int i = 1; i <= times; i++) {
        pthread_kill(blocked, SIGUSR1);
        for (int j = 0; j < 1000 && handled < i; j++)
            pause_ms(1);
        wait_asleep(&tid);
    }
}

/* Without SA_RESTART every call ends; with it, those that Linux restarts go on and end by what comes. */
static void each_call(int flags)
{
    static long (*const calls[])(void) = {call_recv,   call_read, call_recvmsg, call_recv_timeout, call_waitall,
                                          call_accept, call_poll, call_select,  call_epoll_wait};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        make_all();
        catch(flags, count);
        start(calls[i]);
        /* Only the last signal comes while a restarted call still waits; one that ended is joined below. */
        pthread_kill(blocked, SIGUSR1);
        for (int j = 0; j < 1000 && handled < 1; j++)
            pause_ms(1);
        pause_ms(30);
        send(c, "hello", 5, 0);
        int n = socket(AF_INET, SOCK_STREAM, 0);
        connect(n, (struct sockaddr *)&address, sizeof address);
        pthread_join(blocked, NULL);
        say("call %zu: handled %d", i, handled);
        close(n);
        close(c);
        close(s);
        close(l);
        close(ep);
    }
}

static void without_restart(void) { each_call(0); }
static void with_restart(void) { each_call(SA_RESTART); }

static void many_signals_and_then_data(void)
{
    make_all();
    catch(SA_RESTART, count);
    start(call_recv);
    interrupt(20);
    send(c, "finally", 7, 0);
    pthread_join(blocked, NULL);
    say("handled %d", handled);
}

static void part_of_it_and_then_a_signal(void)
{
    make_all();
    catch(0, count);
    start(call_waitall);
    send(c, "abc", 3, 0);
    pause_ms(30);
    wait_asleep(&tid);
    interrupt(1);
    pthread_join(blocked, NULL);
}

/* A signal that is blocked and pending is let in by the mask of the call, and by nothing else. */
static void masks(void)
{
    make_all();
    catch(SA_RESTART, count);
    sigset_t none, usr1;
    sigemptyset(&none);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, NULL);
    struct pollfd w = {s, POLLIN, 0};
    struct timespec zero = {0, 0}, later = {0, 50000000};
    struct epoll_event e;
    fd_set set;

    pthread_kill(pthread_self(), SIGUSR1);
    SAY(poll(&w, 1, 20));
    SAY(ppoll(&w, 1, &later, NULL));
    say("handled %d", handled);
    SAY(ppoll(&w, 1, NULL, &none));
    say("handled %d", handled);
    SAY(ppoll(&w, 1, &later, &none));

    pthread_kill(pthread_self(), SIGUSR1);
    FD_ZERO(&set);
    FD_SET(s, &set);
    SAY(pselect(s + 1, &set, NULL, NULL, NULL, &none));
    say("handled %d", handled);

    pthread_kill(pthread_self(), SIGUSR1);
    SAY(epoll_wait(ep, &e, 1, 20));
    SAY(epoll_pwait(ep, &e, 1, -1, &none));
    say("handled %d", handled);
    pthread_kill(pthread_self(), SIGUSR1);
    SAY(epoll_pwait2(ep, &e, 1, NULL, &none));
    say("handled %d", handled);

    /* Not even without waiting. */
    pthread_kill(pthread_self(), SIGUSR1);
    SAY(ppoll(&w, 1, &zero, &none));
    say("handled %d", handled);
    pthread_kill(pthread_self(), SIGUSR1);
    FD_SET(s, &set);
    SAY(pselect(s + 1, &set, NULL, NULL, &zero, &none));
    say("handled %d", handled);

    /* What is ready comes first; the signal stays pending. */
    pthread_kill(pthread_self(), SIGUSR1);
    send(c, "x", 1, 0);
    SAY(poll(&w, 1, 5000));
    SAY(ppoll(&w, 1, NULL, &none));
    SAY(epoll_pwait(ep, &e, 1, -1, &none));
    say("handled %d", handled);
    pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    say("handled %d", handled);
}

static void talk(int signal)
{
    (void)signal;
    handled++;
    send(c, "from the handler", 16, 0);
}

/* A handler sends what the interrupted call waits for. */
static void handler_that_sends(void)
{
    make_all();
    catch(SA_RESTART, talk);
    start(call_recv);
    pthread_kill(blocked, SIGUSR1);
    pthread_join(blocked, NULL);
    start(call_poll);
    pthread_kill(blocked, SIGUSR1);
    pthread_join(blocked, NULL);
    say("handled %d", handled);
}

/* A handler sends on the very socket whose send it interrupts: whole messages, all of them, none inside another. */
enum { MESSAGES = 300000, SIGNALS = 3000 };
static volatile int refused, over;

static void break_in(int signal)
{
    (void)signal;
    if (send(c, "handler\n", 8, 0) != 8)
        refused++;
    handled++;
}

static void *send_many(void *none)
{
    for (int i = 0; i < MESSAGES; i++)
        must(send(c, "message\n", 8, 0) == 8, "send");
    over = 1;
    return none;
}

static void *read_all(void *counts)
{
    int *count = counts;
    size_t n = 0;
    for (ssize_t got; (got = recv(s, room + n, sizeof room - n, 0)) > 0;) {
        size_t end = n + (size_t)got, at = 0;
        for (; at + 8 <= end; at += 8)
            count[!memcmp(room + at, "message\n", 8) ? 0 : !memcmp(room + at, "handler\n", 8) ? 1 : 2]++;
        n = end - at;
        memmove(room, room + at, n);
    }
    return NULL;
}

static void handler_that_breaks_in(void)
{
    make_all();
    catch(SA_RESTART, break_in);
    int counts[3] = {0};
    pthread_t reader;
    pthread_create(&reader, NULL, read_all, counts);
    over = 0;
    pthread_create(&blocked, NULL, send_many, NULL);
    for (int i = 1; i <= SIGNALS && !over; i++) {
        pthread_kill(blocked, SIGUSR1);
        while (handled < i && !over)
            sched_yield();
    }
    pthread_join(blocked, NULL);
    shutdown(c, SHUT_WR);
    pthread_join(reader, NULL);
    say("messages %d, others %d, refused %d", counts[0], counts[2], refused);
    say("of the handler: %s, %s", counts[1] == handled ? "all" : "not all", handled > 0 ? "some" : "none");
}

static void listen_in(int signal)
{
    (void)signal;
    handled++;
    char byte;
    recv(s, &byte, 1, MSG_DONTWAIT);
    errno = ENOTTY;
}

/* A handler reads from the very socket; the interrupted call goes on waiting. */
static void handler_that_receives(void)
{
    make_all();
    static char stack[65536];
    catch(SA_RESTART, listen_in);
    stack_t alternative = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternative, NULL);
    start(call_recv);
    interrupt(3);
    send(c, "data", 4, 0);
    pthread_join(blocked, NULL);
    say("handled %d", handled);
}

static void one_set_for_everything(void)
{
    make_all();
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, NULL);
    int sfd = signalfd(-1, &usr1, 0), tfd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = sfd};
    epoll_ctl(ep, EPOLL_CTL_ADD, sfd, &e);
    e.data.fd = tfd;
    epoll_ctl(ep, EPOLL_CTL_ADD, tfd, &e);
    struct itimerspec soon = {.it_value = {0, 30000000}};
    timerfd_settime(tfd, 0, &soon, NULL);
    SAY(epoll_wait(ep, &e, 1, 20000));
    say("timer %d", e.data.fd == tfd);
    uint64_t ticks;
    SAY(read(tfd, &ticks, sizeof ticks));
    kill(getpid(), SIGUSR1);
    SAY(epoll_wait(ep, &e, 1, 20000));
    say("signal %d", e.data.fd == sfd);
    struct signalfd_siginfo info;
    SAY(read(sfd, &info, sizeof info) == sizeof info);
    say("%d", info.ssi_signo == SIGUSR1);
    send(c, "x", 1, 0);
    SAY(epoll_wait(ep, &e, 1, 20000));
    say("socket %d", e.data.fd == s);
    SAY(epoll_wait(ep, &e, 1, 0));
    SAY(recv(s, room, 10, 0));
    SAY(epoll_wait(ep, &e, 1, 0));
}

static void *kill_main_later(void *main_thread)
{
    pause_ms(60);
    pthread_kill(*(pthread_t *)main_thread, SIGUSR1);
    return NULL;
}

/* The signal comes during the wait, though it is blocked outside of it. */
static void mask_during_the_wait(void)
{
    make_all();
    catch(0, count);
    sigset_t none, usr1;
    sigemptyset(&none);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, NULL);
    struct pollfd w = {s, POLLIN, 0};
    struct epoll_event e;
    pthread_t me = pthread_self(), t;
    pthread_create(&t, NULL, kill_main_later, &me);
    SAY(ppoll(&w, 1, NULL, &none));
    say("handled %d", handled);
    pthread_join(t, NULL);
    pthread_create(&t, NULL, kill_main_later, &me);
    SAY(epoll_pwait(ep, &e, 1, -1, &none));
    say("handled %d", handled);
    pthread_join(t, NULL);
    pthread_create(&t, NULL, kill_main_later, &me);
    SAY(sigsuspend(&none));
    say("handled %d", handled);
    pthread_join(t, NULL);
}

static const struct test TESTS[] = {
    {"without_restart", "user", without_restart},
    {"with_restart", "user", with_restart},
    {"many_signals_and_then_data", "user", many_signals_and_then_data},
    {"part_of_it_and_then_a_signal", "user", part_of_it_and_then_a_signal},
    {"masks", "user", masks},
    {"mask_during_the_wait", "user", mask_during_the_wait},
    {"handler_that_sends", "user", handler_that_sends},
    {"handler_that_breaks_in", "user", handler_that_breaks_in},
    {"handler_that_receives", "user", handler_that_receives},
    {"one_set_for_everything", "user", one_set_for_everything},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

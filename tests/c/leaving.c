/* Leaving a blocked call: pthread_cancel, and siglongjmp out of a signal handler. What the call used must be as good as before. */
#include "common.h"
#include <setjmp.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>

static int c, s, l, ep, cleaned;
static struct sockaddr_in address;

/* Both ends, a listener with an empty queue, and an epoll set with the server's end in it. */
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
    cleaned = 0;
}

/* Everything still works, and closing one end is seen at the other. */
static void still_good(void)
{
    char room[70000];
    while (recv(c, room, sizeof room, MSG_DONTWAIT) > 0)
        ;
    while (recv(s, room, sizeof room, MSG_DONTWAIT) > 0)
        ;
    SAY(send(c, "good", 4, 0));
    say("%s", arrived(s, 4));
    SAY(send(s, "good", 4, 0));
    say("%s", arrived(c, 4));
    int n = socket(AF_INET, SOCK_STREAM, 0);
    SAY(connect(n, (struct sockaddr *)&address, sizeof address));
    int a = accept(l, NULL, NULL);
    say("accepted %d", a >= 0);
    SAY(send(n, "new", 3, 0));
    say("%s", arrived(a, 3));
    SAY(close(s));
    struct pollfd w = {c, POLLIN, 0};
    SAY(poll(&w, 1, 5000));
    SAY(recv(c, room, sizeof room, MSG_DONTWAIT));
    close(c);
    close(n);
    close(a);
    close(l);
    close(ep);
}

static char room[1 << 20];

static void block_recv(void) { recv(s, room, sizeof room, 0); }
static void block_read(void) { read(s, room, sizeof room); }
static void block_recv_waitall(void) { recv(s, room, sizeof room, MSG_WAITALL); }
static void block_recv_with_timeout(void)
{
    struct timeval t = {20, 0};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    recv(s, room, sizeof room, 0);
}
static void block_recvmsg(void)
{
    struct iovec v = {room, sizeof room};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    recvmsg(s, &m, 0);
}
static void block_send(void)
{
    for (;;)
        send(c, room, sizeof room, 0);
}
static void block_writev(void)
{
    struct iovec v[2] = {{room, 1000}, {room, sizeof room}};
    for (;;)
        writev(c, v, 2);
}
static void block_accept(void) { accept(l, NULL, NULL); }
static void block_poll(void)
{
    struct pollfd w = {s, POLLIN, 0};
    poll(&w, 1, 20000);
}
static void block_ppoll(void)
{
    struct pollfd w[2] = {{s, POLLIN, 0}, {l, POLLIN, 0}};
    ppoll(w, 2, NULL, NULL);
}
static void block_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s, &set);
    select(s + 1, &set, NULL, NULL, NULL);
}
static void block_epoll_wait(void)
{
    struct epoll_event e;
    epoll_wait(ep, &e, 1, -1);
}
static void block_epoll_wait_of_the_kernels(void)
{
    struct epoll_event e;
    int p[2];
    must(pipe(p) == 0, "pipe");
    int own = epoll_create1(0);
    e.events = EPOLLIN;
    epoll_ctl(own, EPOLL_CTL_ADD, p[0], &e);
    epoll_wait(own, &e, 1, -1);
}
static void block_raw_read(void) { syscall(SYS_read, s, room, sizeof room); }

static void clean_up(void *unused)
{
    (void)unused;
    cleaned++;
}

static void *cancelled(void *block)
{
    pthread_cleanup_push(clean_up, NULL);
    ((void (*)(void))block)();
    say("the call returned");
    pthread_cleanup_pop(1);
    return NULL;
}

static void cancel_in(void (*block)(void))
{
    make_all();
    for (int round = 0; round < 3; round++) {
        pthread_t t;
        pthread_create(&t, NULL, cancelled, (void *)block);
        pause_ms(40);
        SAY(pthread_cancel(t));
        void *result;
        SAY(pthread_join(t, &result));
        say("cancelled %d, cleaned up %d", result == PTHREAD_CANCELED, cleaned);
        if (block == block_recv_with_timeout) {
            struct timeval none = {0, 0};
            setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
        }
        while (recv(s, room, sizeof room, MSG_DONTWAIT) > 0)
            ;
    }
    still_good();
}

static void in_recv(void) { cancel_in(block_recv); }
static void in_read(void) { cancel_in(block_read); }
static void in_recv_waitall(void) { cancel_in(block_recv_waitall); }
static void in_recv_with_timeout(void) { cancel_in(block_recv_with_timeout); }
static void in_recvmsg(void) { cancel_in(block_recvmsg); }
static void in_send(void) { cancel_in(block_send); }
static void in_writev(void) { cancel_in(block_writev); }
static void in_accept(void) { cancel_in(block_accept); }
static void in_poll(void) { cancel_in(block_poll); }
static void in_ppoll(void) { cancel_in(block_ppoll); }
static void in_select(void) { cancel_in(block_select); }
static void in_epoll_wait(void) { cancel_in(block_epoll_wait); }
static void in_epoll_wait_of_the_kernels(void) { cancel_in(block_epoll_wait_of_the_kernels); }

static void *disabled(void *unused)
{
    (void)unused;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    char byte;
    SAY(recv(s, &byte, 1, 0));
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    say("still here");
    SAY(recv(s, &byte, 1, 0));
    say("never here");
    return NULL;
}

/* Pending until it is enabled, and then acted on by a call that need not even wait. */
static void disabled_and_pending(void)
{
    make_all();
    pthread_t t;
    pthread_create(&t, NULL, disabled, NULL);
    pause_ms(40);
    SAY(pthread_cancel(t));
    pause_ms(40);
    send(c, "xy", 2, 0);
    void *result;
    SAY(pthread_join(t, &result));
    say("cancelled %d", result == PTHREAD_CANCELED);
    still_good();
}

/* A system call by number is no cancellation point. */
static void not_in_syscall(void)
{
    make_all();
    pthread_t t;
    pthread_create(&t, NULL, cancelled, (void *)block_raw_read);
    pause_ms(40);
    SAY(pthread_cancel(t));
    pause_ms(40);
    SAY(send(c, "x", 1, 0));
    void *result;
    SAY(pthread_join(t, &result));
    say("cleaned up %d", cleaned);
    still_good();
}

static void *busy(void *unused)
{
    (void)unused;
    char byte;
    for (;;)
        recv(s, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return NULL;
}

static void of_a_thread_that_never_waits(void)
{
    make_all();
    send(c, "x", 1, 0);
    pthread_t t;
    pthread_create(&t, NULL, busy, NULL);
    pause_ms(40);
    SAY(pthread_cancel(t));
    void *result;
    SAY(pthread_join(t, &result));
    say("cancelled %d", result == PTHREAD_CANCELED);
    still_good();
}

static sigjmp_buf back;

static void jump(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

/* The old way to limit a call's time: an alarm whose handler jumps. */
static void jump_out_of(void (*block)(void), int flags)
{
    make_all();
    static char stack[65536];
    stack_t alternative = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternative, NULL);
    struct sigaction act = {.sa_handler = jump, .sa_flags = flags};
    sigaction(SIGALRM, &act, NULL);
    for (volatile int round = 0; round < 3; round++) {
        if (sigsetjmp(back, 1) == 0) {
            struct itimerval soon = {.it_value = {0, 40000}};
            setitimer(ITIMER_REAL, &soon, NULL);
            block();
            say("the call returned");
        } else {
            say("jumped");
        }
        while (recv(s, room, sizeof room, MSG_DONTWAIT) > 0)
            ;
    }
    still_good();
}

static void jump_out_of_recv(void) { jump_out_of(block_recv, 0); }
static void jump_out_of_recv_that_restarts(void) { jump_out_of(block_recv, SA_RESTART); }
static void jump_out_of_recv_from_another_stack(void) { jump_out_of(block_recv, SA_ONSTACK); }
static void jump_out_of_send(void) { jump_out_of(block_send, 0); }
static void jump_out_of_accept(void) { jump_out_of(block_accept, 0); }
static void jump_out_of_poll(void) { jump_out_of(block_poll, 0); }
static void jump_out_of_select(void) { jump_out_of(block_select, 0); }
static void jump_out_of_epoll_wait(void) { jump_out_of(block_epoll_wait, 0); }

static void jump_inside(int signal)
{
    (void)signal;
    sigjmp_buf inside;
    if (sigsetjmp(inside, 1) == 0)
        siglongjmp(inside, 1);
    say("handled");
}

/* A handler that jumps within itself leaves the interrupted call alone. */
static void jump_inside_a_handler(void)
{
    make_all();
    struct sigaction act = {.sa_handler = jump_inside, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &act, NULL);
    struct itimerval soon = {.it_value = {0, 40000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    pid_t pid = fork();
    if (pid == 0) {
        pause_ms(150);
        send(c, "late", 4, 0);
        _exit(0);
    }
    SAY(recv(s, room, sizeof room, 0));
    waitpid(pid, NULL, 0);
    still_good();
}

static const struct test TESTS[] = {
    {"cancel_in_recv", "user", in_recv},
    {"cancel_in_read", "user", in_read},
    {"cancel_in_recv_waitall", "user", in_recv_waitall},
    {"cancel_in_recv_with_timeout", "user", in_recv_with_timeout},
    {"cancel_in_recvmsg", "user", in_recvmsg},
    {"cancel_in_send", "user", in_send},
    {"cancel_in_writev", "user", in_writev},
    {"cancel_in_accept", "user", in_accept},
    {"cancel_in_poll", "user", in_poll},
    {"cancel_in_ppoll", "user", in_ppoll},
    {"cancel_in_select", "user", in_select},
    {"cancel_in_epoll_wait", "user", in_epoll_wait},
    {"cancel_in_epoll_wait_of_the_kernels", "user", in_epoll_wait_of_the_kernels},
    {"cancel_disabled_and_pending", "user", disabled_and_pending},
    {"cancel_not_in_syscall", "user", not_in_syscall},
    {"cancel_of_a_thread_that_never_waits", "user", of_a_thread_that_never_waits},
    {"jump_out_of_recv", "user", jump_out_of_recv},
    {"jump_out_of_recv_that_restarts", "user", jump_out_of_recv_that_restarts},
    {"jump_out_of_recv_from_another_stack", "user", jump_out_of_recv_from_another_stack},
    {"jump_out_of_send", "user", jump_out_of_send},
    {"jump_out_of_accept", "user", jump_out_of_accept},
    {"jump_out_of_poll", "user", jump_out_of_poll},
    {"jump_out_of_select", "user", jump_out_of_select},
    {"jump_out_of_epoll_wait", "user", jump_out_of_epoll_wait},
    {"jump_inside_a_handler", "user", jump_inside_a_handler},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

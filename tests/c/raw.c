/* System calls by number, through libc's `syscall`. */
#include "common.h"
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static void a_connection_by_numbers(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, peer;
    socklen_t len = sizeof a, one = 1;
    int l = syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
    SAY(syscall(SYS_setsockopt, l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
    SAY(syscall(SYS_bind, l, &a, sizeof a));
    SAY(syscall(SYS_listen, l, 4));
    SAY(syscall(SYS_getsockname, l, &a, &len));
    int c = syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
    SAY(syscall(SYS_connect, c, &a, sizeof a));
    len = sizeof peer;
    int s = syscall(SYS_accept4, l, &peer, &len, SOCK_CLOEXEC);
    say("accepted %d, %d bytes, %d", s > 0, (int)len, peer.sin_port != 0);
    SAY(syscall(SYS_getpeername, c, &peer, &len));
    say("same %d", peer.sin_port == a.sin_port);
    SAY(syscall(SYS_write, c, "0123456789", 10L));
    char room[32] = "";
    SAY(syscall(SYS_read, s, room, 4L));
    struct iovec v[2] = {{room, 2}, {room + 8, 2}};
    SAY(syscall(SYS_readv, s, v, 2));
    SAY(syscall(SYS_ioctl, s, FIONREAD, &one));
    say("%d wait", one);
    SAY(syscall(SYS_recvfrom, s, room, sizeof room, MSG_DONTWAIT, NULL, NULL));
    SAY(syscall(SYS_recvfrom, s, room, sizeof room, MSG_DONTWAIT, NULL, NULL));
    SAY(syscall(SYS_sendto, s, "answer", 6L, 0, NULL, 0));
    struct iovec in = {room, sizeof room};
    struct msghdr m = {.msg_iov = &in, .msg_iovlen = 1};
    SAY(syscall(SYS_recvmsg, c, &m, 0));
    say("%.6s", room);
    SAY(syscall(SYS_sendmsg, c, &m, 0));
    SAY(syscall(SYS_shutdown, c, SHUT_WR));
    SAY(syscall(SYS_recvfrom, s, room, sizeof room, 0, NULL, NULL));
    SAY(syscall(SYS_read, s, room, sizeof room));
    len = sizeof one;
    SAY(syscall(SYS_getsockopt, s, SOL_SOCKET, SO_ERROR, &one, &len));
    SAY(syscall(SYS_close, s));
    SAY(syscall(SYS_close, s));
    SAY(syscall(SYS_read, c, room, sizeof room));
    SAY(syscall(SYS_close, c));
    SAY(syscall(SYS_close, l));
}

static void descriptors(void)
{
    int p[2];
    connected(p);
    int d = syscall(SYS_dup, p[0]);
    SAY(syscall(SYS_write, d, "dup", 3L));
    say("%s", arrived(p[1], 3));
    SAY(syscall(SYS_dup3, p[0], 50, O_CLOEXEC));
    SAY(syscall(SYS_write, 50, "dup3", 4L));
    say("%s", arrived(p[1], 4));
#ifdef SYS_dup2
    SAY(syscall(SYS_dup2, p[0], 51));
    SAY(syscall(SYS_write, 51, "dup2", 4L));
    say("%s", arrived(p[1], 4));
#endif
    SAY(syscall(SYS_fcntl, p[0], F_DUPFD, 60));
    SAY(syscall(SYS_write, 60, "fcntl", 5L));
    say("%s", arrived(p[1], 5));
    SAY(syscall(SYS_fcntl, p[1], F_SETFL, O_NONBLOCK));
    char c;
    SAY(syscall(SYS_read, p[1], &c, 1L));
    SAY(syscall(SYS_close_range, 50, 51, 0));
    SAY(syscall(SYS_close, 60));
    SAY(syscall(SYS_close, d));
    SAY(syscall(SYS_read, p[1], &c, 1L));
    SAY(syscall(SYS_dup2, open("/dev/null", O_RDONLY), p[0]) >= 0);
    SAY(syscall(SYS_read, p[1], &c, 1L));
}

static void waiting(void)
{
    int p[2];
    connected(p);
    struct pollfd w = {p[1], POLLIN, 0};
    struct timespec none = {0, 0}, long_time = {20, 0};
    SAY(syscall(SYS_ppoll, &w, 1L, &none, NULL, 8L));
    int ep = syscall(SYS_epoll_create1, EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 77}, got;
    SAY(syscall(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, p[1], &e));
    SAY(syscall(SYS_epoll_pwait, ep, &got, 1, 0, NULL, 8L));
    send(p[0], "x", 1, 0);
    SAY(syscall(SYS_ppoll, &w, 1L, &long_time, NULL, 8L));
    SAY(syscall(SYS_epoll_pwait, ep, &got, 1, 20000, NULL, 8L));
    say("events %x data %lu", got.events, (unsigned long)got.data.u64);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(p[1], &set);
    long_time.tv_sec = 20;
    SAY(syscall(SYS_pselect6, p[1] + 1, &set, NULL, NULL, &long_time, NULL));
    say("set %d", FD_ISSET(p[1], &set) != 0);
#ifdef SYS_poll
    SAY(syscall(SYS_poll, &w, 1L, 20000));
    struct timeval t = {20, 0};
    SAY(syscall(SYS_select, p[1] + 1, &set, NULL, NULL, &t));
    SAY(syscall(SYS_epoll_wait, ep, &got, 1, 20000));
#endif
}

static void the_rest_is_the_kernels(void)
{
    SAY(syscall(SYS_getpid) == getpid());
    SAY(syscall(SYS_close, 700));
    SAY(syscall(SYS_read, -1, NULL, 0L));
    SAY(syscall(100000));
    int p[2];
    SAY(syscall(SYS_pipe2, p, 0));
    SAY(syscall(SYS_write, p[1], "pipe", 4L));
    char room[8] = "";
    SAY(syscall(SYS_read, p[0], room, 8L));
    struct iovec v = {"v", 1};
    SAY(syscall(SYS_pwritev2, p[1], &v, 1L, -1L, -1L, 0L));
}

static void execve_by_number(void)
{
    int p[2];
    connected(p);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(p[1], 0);
        dup2(p[1], 1);
        char *argv[] = {"cat", NULL};
        syscall(SYS_execve, "/bin/cat", argv, environ);
        _exit(9);
    }
    close(p[1]);
    send(p[0], "through cat", 11, 0);
    shutdown(p[0], SHUT_WR);
    say("%s", arrived(p[0], 100));
    int status;
    waitpid(pid, &status, 0);
    say("status %x", status);
}

static const struct test TESTS[] = {
    {"a_connection_by_numbers", "user", a_connection_by_numbers},
    {"descriptors", "user", descriptors},
    {"waiting", "user", waiting},
    {"execve_by_number", "user", execve_by_number},
    {"the_rest_is_the_kernels", "any", the_rest_is_the_kernels},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

/* Forked children of an ordinary user that hold no connection: they attach when they have something to ask for, if ever. */
#include "common.h"
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>

static struct sockaddr_in address;

/* A listener of a process that is not root: root's children attach at once. */
static int listener_of_a_user(void)
{
    if (geteuid() == 0)
        must(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0, "setresuid");
    socklen_t len = sizeof address;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int l = socket(AF_INET, SOCK_STREAM, 0);
    must(l >= 0 && bind(l, (void *)&address, len) == 0 && listen(l, 8) == 0, "listen");
    must(getsockname(l, (void *)&address, &len) == 0, "getsockname");
    return l;
}

static int client(void)
{
    int c = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c, (void *)&address, sizeof address) != 0) {
        say("connect: %s", strerrorname_np(errno));
        close(c);
        return -1;
    }
    return c;
}

/* What parent and child tell each other: a byte through a pipe each way. */
static int to_child[2], to_parent[2];

static pid_t forked(void (*child)(int), int l)
{
    must(pipe(to_child) == 0 && pipe(to_parent) == 0, "pipe");
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        alarm(20);
        child(l);
        close(l);
        _exit(0);
    }
    return pid;
}

static void tell(int *pipe_of, char byte)
{
    must(write(pipe_of[1], &byte, 1) == 1, "write");
}

static void await(int *pipe_of)
{
    char byte;
    must(read(pipe_of[0], &byte, 1) == 1, "read");
}

static void ended(pid_t pid)
{
    int status;
    must(waitpid(pid, &status, 0) == pid, "waitpid");
    say("child: %d %d", WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

static void serve(int s)
{
    char room[16] = "";
    must(recv(s, room, sizeof room, 0) == 5 && send(s, "answer", 6, 0) == 6, "serve");
    close(s);
}

static void ask(int c)
{
    char room[16] = "";
    SAY(send(c, "quest", 5, 0));
    SAY(recv(c, room, sizeof room, 0));
    SAY(recv(c, room, sizeof room, 0));
    say("%s", room);
    close(c);
}

static void accepts(int l)
{
    await(to_child);
    serve(accept(l, NULL, NULL));
    serve(accept(l, NULL, NULL));
}

static void waits_in_epoll(int l)
{
    await(to_child);
    int ep = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    must(epoll_ctl(ep, EPOLL_CTL_ADD, l, &event) == 0, "epoll_ctl");
    for (int i = 0; i < 2; i++) {
        must(epoll_wait(ep, &event, 1, 8000) == 1, "epoll_wait");
        serve(accept(l, NULL, NULL));
    }
}

static void waits_in_poll(int l)
{
    await(to_child);
    for (int i = 0; i < 2; i++) {
        struct pollfd p = {.fd = l, .events = POLLIN};
        must(poll(&p, 1, 8000) == 1, "poll");
        serve(accept(l, NULL, NULL));
    }
}

static void waits_in_select(int l)
{
    await(to_child);
    for (int i = 0; i < 2; i++) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(l, &set);
        must(select(l + 1, &set, NULL, NULL, NULL) == 1, "select");
        serve(accept(l, NULL, NULL));
    }
}

static void is_filtered(int l)
{
    await(to_child);
    must(prctl(PR_SET_SECCOMP, 77, 0, 0, 0) == -1 && errno == EINVAL, "prctl");
    serve(accept(l, NULL, NULL));
    serve(accept(l, NULL, NULL));
}

static void has_a_child(int l)
{
    await(to_child);
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        serve(accept(l, NULL, NULL));
        serve(accept(l, NULL, NULL));
    }
}

/* The first client comes before the child has asked for anything, the second while it waits. */
static void served_by(void (*child)(int))
{
    int l = listener_of_a_user();
    pid_t pid = forked(child, l);
    int c = client();
    tell(to_child, 'g');
    ask(c);
    ask(client());
    ended(pid);
    close(l);
    say("then %d", client());
}

static void a_child_accepts(void)
{
    served_by(accepts);
}
static void a_child_waits_in_epoll(void)
{
    served_by(waits_in_epoll);
}
static void a_child_waits_in_poll(void)
{
    served_by(waits_in_poll);
}
static void a_child_waits_in_select(void)
{
    served_by(waits_in_select);
}
static void a_child_gives_up_system_calls(void)
{
    served_by(is_filtered);
}
static void a_child_has_a_child(void)
{
    int l = listener_of_a_user();
    pid_t pid = forked(has_a_child, l);
    int c = client();
    tell(to_child, 'g');
    ended(pid);
    ask(c);
    ask(client());
    close(l);
}

static void closes(int l)
{
    close(l);
    tell(to_parent, 'c');
    await(to_child);
}

static void only_lives(int l)
{
    (void)l;
    tell(to_parent, 'l');
    pause();
}

/* Nobody listens any more when the last one has closed it, whatever children there were. */
static void a_child_closes_the_listener(void)
{
    int l = listener_of_a_user();
    pid_t pid = forked(closes, l);
    await(to_parent);
    close(l);
    say("then %d", client());
    tell(to_child, 'e');
    ended(pid);
}

static void a_child_is_killed(void)
{
    int l = listener_of_a_user();
    pid_t pid = forked(only_lives, l);
    await(to_parent);
    kill(pid, SIGKILL);
    ended(pid);
    close(l);
    say("then %d", client());
}

/* The listener lives as long as a child has it, and who comes is served once the child does that. */
static void only_a_child_is_left(void)
{
    int l = listener_of_a_user();
    pid_t pid = forked(accepts, l);
    int first = client();
    close(l);
    int second = client();
    say("%d %d", first >= 0, second >= 0);
    SAY(send(first, "quest", 5, 0));
    SAY(send(second, "quest", 5, 0));
    tell(to_child, 'g');
    for (int i = 0; i < 2; i++) {
        char room[16] = "";
        SAY(recv(i ? second : first, room, sizeof room, 0));
        say("%s", room);
    }
    ended(pid);
    say("then %d", client());
}

static void connects(int l)
{
    close(l);
    ask(client());
}

static void a_child_connects(void)
{
    int l = listener_of_a_user();
    pid_t pid = forked(connects, l);
    serve(accept(l, NULL, NULL));
    ended(pid);
}

/* A client whose server has gone hears of it, children or not. */
static void a_client_waits_in_vain(void)
{
    int l = listener_of_a_user();
    pid_t pid = forked(only_lives, l);
    await(to_parent);
    int c = client();
    kill(pid, SIGKILL);
    ended(pid);
    close(l);
    char room[4];
    SAY(recv(c, room, sizeof room, 0));
    close(c);
}

static const struct test TESTS[] = {
    {"a_child_accepts", "user", a_child_accepts},
    {"a_child_waits_in_epoll", "user", a_child_waits_in_epoll},
    {"a_child_waits_in_poll", "user", a_child_waits_in_poll},
    {"a_child_waits_in_select", "user", a_child_waits_in_select},
    {"a_child_gives_up_system_calls", "user", a_child_gives_up_system_calls},
    {"a_child_has_a_child", "user", a_child_has_a_child},
    {"a_child_closes_the_listener", "any", a_child_closes_the_listener},
    {"a_child_is_killed", "any", a_child_is_killed},
    {"only_a_child_is_left", "any", only_a_child_is_left},
    {"a_child_connects", "user", a_child_connects},
    {"a_client_waits_in_vain", "user", a_client_waits_in_vain},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

/* Children that have their parent's memory (clone(2) with CLONE_VM): what they do to descriptors is their own. */
#include "common.h"
#include <sched.h>
#include <sys/syscall.h>

static int fds[2];
static long result;

/* Closes what its parent uses, and puts one end in the place of the other. */
static int child(void *none)
{
    (void)none;
    result = close(fds[0]) == 0 && dup2(1, fds[0]) == fds[0] && close(fds[1]) == 0;
    return 7;
}

static void goes_on(int status)
{
    say("child: %d %d, done: %ld", WIFEXITED(status), WIFEXITED(status) ? WEXITSTATUS(status) : -1, result);
    SAY(send(fds[0], "abc", 3, 0));
    say("arrived: %s", arrived(fds[1], 3));
    SAY(send(fds[1], "def", 3, 0));
    say("arrived: %s", arrived(fds[0], 3));
    SAY(close(fds[0]));
    say("arrived: %s", arrived(fds[1], 1));
    SAY(close(fds[1]));
    SAY(close(fds[1]));
}

static void by_clone(void)
{
    static char stack[1 << 16] __attribute__((aligned(16)));
    int status = 0, parents = -1;
    connected(fds);
    /* All seven arguments arrive. */
    pid_t pid = clone(child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID | SIGCHLD, NULL, &parents, NULL, NULL);
    must(pid > 0 && waitpid(pid, &status, 0) == pid, "clone");
    say("told: %d", parents == pid);
    goes_on(status);
}

/* Without CLONE_VFORK both run at once. */
static void by_clone_at_once(void)
{
    static char stack[1 << 16] __attribute__((aligned(16)));
    int status = 0;
    connected(fds);
    pid_t pid = clone(child, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    must(pid > 0 && waitpid(pid, &status, 0) == pid, "clone");
    goes_on(status);
}

/* A copy of the memory, by its number: libc does not hear of it. */
static void by_number(void)
{
    int status = 0;
    connected(fds);
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        syscall(SYS_exit_group, child(NULL));
    must(pid > 0 && waitpid((pid_t)pid, &status, 0) == pid, "clone");
    goes_on(status);
}

#ifdef __x86_64__
/* The same without any function of libc's. */
static void by_an_instruction(void)
{
    int status = 0;
    long pid;
    connected(fds);
    __asm__ volatile("syscall" : "=a"(pid) : "a"(SYS_fork) : "rcx", "r11", "memory");
    if (pid == 0)
        syscall(SYS_exit_group, child(NULL));
    must(pid > 0 && waitpid((pid_t)pid, &status, 0) == pid, "fork");
    goes_on(status);
}
#else
#define by_an_instruction by_number
#endif

static const struct test TESTS[] = {
    {"by_clone", "any", by_clone},
    {"by_clone_at_once", "any", by_clone_at_once},
    {"by_number", "any", by_number},
    {"by_an_instruction", "any", by_an_instruction},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

/* stdio on sockets: streams made by fdopen, dprintf, and standard streams whose descriptors are sockets. */
#include "common.h"
#include <err.h>
#include <wchar.h>

static void lines_both_ways(void)
{
    int p[2];
    connected(p);
    FILE *c = fdopen(p[0], "r+"), *s = fdopen(p[1], "w+");
    say("fileno %d %d", fileno(c) == p[0], fileno_unlocked(s) == p[1]);
    SAY(fprintf(c, "hello %d\n", 42));
    say("buffered %d", nothing_on(p[1]));
    SAY(fflush(c));
    char line[64];
    say("gets %s", fgets(line, sizeof line, s));
    SAY(fputs("answer\nrest", s));
    SAY(fflush(s));
    char *text = NULL;
    size_t room = 0;
    SAY(getline(&text, &room, c));
    say("line %s", text);
    SAY(fclose(s));
    SAY(getline(&text, &room, c));
    say("line %s", text);
    SAY(getline(&text, &room, c));
    say("eof %d error %d", feof(c) != 0, ferror(c));
    free(text);
    SAY(fclose(c));
    SAY(fcntl(p[0], F_GETFD));
    SAY(fcntl(p[1], F_GETFD));
}

static void separate_streams_for_reading_and_writing(void)
{
    int p[2];
    connected(p);
    FILE *in = fdopen(p[0], "r"), *out = fdopen(dup(p[0]), "w");
    FILE *speer = fdopen(p[1], "r+");
    setvbuf(out, NULL, _IOLBF, 0);
    SAY(fprintf(out, "question\n"));
    char line[64];
    say("gets %s", fgets(line, sizeof line, speer));
    fputs("42 17\n", speer);
    fflush(speer);
    int a = 0, b = 0;
    SAY(fscanf(in, "%d %d", &a, &b));
    say("%d %d", a, b);
    SAY(ungetc('x', in));
    SAY(fgetc(in));
    SAY(fgetc(in));
    SAY(fclose(out));
    say("still open %d", nothing_on(p[1]));
    SAY(fclose(in));
    SAY(fgetc(speer));
    say("eof %d", feof(speer) != 0);
    fclose(speer);
}

static void buffering_modes(void)
{
    int p[2];
    connected(p);
    FILE *f = fdopen(p[0], "w");
    SAY(setvbuf(f, NULL, _IONBF, 0));
    fputs("abc", f);
    say("%s", arrived(p[1], 3));
    SAY(setvbuf(f, NULL, _IOLBF, 0));
    fputs("no newline", f);
    say("nothing %d", nothing_on(p[1]));
    fputs(", now\nmore", f);
    say("%s", arrived(p[1], 16));
    fflush(f);
    say("%s", arrived(p[1], 4));
    static char buffer[16];
    SAY(setvbuf(f, buffer, _IOFBF, sizeof buffer));
    fputs("0123456789", f);
    say("nothing %d", nothing_on(p[1]));
    fputs("0123456789", f);
    fflush(f);
    say("%s", arrived(p[1], 20));
    fclose(f);
}

static void modes_and_errors(void)
{
    int p[2];
    connected(p);
    SAY(fdopen(p[0], "x") == NULL ? -1 : 0);
    SAY(fdopen(77, "r") == NULL ? -1 : 0);
    FILE *f = fdopen(p[0], "rb");
    SAY(fputc('x', f));
    SAY(ftell(f));
    SAY(fseek(f, 0, SEEK_SET));
    clearerr(f);
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    SAY(fgetc(f));
    say("error %d eof %d", ferror(f) != 0, feof(f));
    clearerr(f);
    send(p[1], "y", 1, 0);
    struct pollfd w = {p[0], POLLIN, 0};
    poll(&w, 1, 5000);
    SAY(fgetc(f));
    close(p[1]);
    poll(&w, 1, 5000);
    SAY(fgetc(f));
    say("error %d eof %d", ferror(f), feof(f) != 0);
    fclose(f);
}

static void broken_pipe(void)
{
    signal(SIGPIPE, SIG_IGN);
    int p[2];
    connected(p);
    FILE *f = fdopen(p[0], "w");
    shutdown(p[0], SHUT_WR);
    SAY(fputs("x", f) >= 0);
    SAY(fflush(f));
    say("error %d", ferror(f) != 0);
    SAY(fputs("x", f) >= 0);
    SAY(fclose(f));
}

static void *sink(void *fd)
{
    static char room[65536];
    unsigned long sum = 0, n = 0;
    ssize_t r;
    while ((r = recv(*(int *)fd, room, sizeof room, 0)) > 0)
        for (ssize_t i = 0; i < r; i++)
            sum = sum * 31 + (unsigned char)room[i], n++;
    say("%lu bytes, sum %lu", n, sum);
    return NULL;
}

static void megabytes(void)
{
    int p[2];
    connected(p);
    pthread_t t;
    pthread_create(&t, NULL, sink, &p[1]);
    FILE *f = fdopen(p[0], "w");
    for (int i = 0; i < 300000; i++)
        fprintf(f, "%d:%x\n", i, i * 7);
    static char block[200000];
    memset(block, 'z', sizeof block);
    SAY(fwrite(block, 1, sizeof block, f));
    int closed = fclose(f);
    pthread_join(t, NULL);
    say("closed %d", closed);
}

static int print_list(int fd, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int n = vdprintf(fd, format, list);
    va_end(list);
    return n;
}

static void dprintf_and_friends(void)
{
    int p[2];
    connected(p);
    SAY(dprintf(p[0], "%s %d %.2f %c %ld %s %d\n", "a", 1, 2.5, 'c', 4L, "e", 6));
    SAY(print_list(p[0], "%s %d %.2f %c %ld %s %d %f\n", "a", 1, 2.5, 'c', 4L, "e", 6, 7.0));
    SAY(dprintf(p[0], "%3000d|\n", 5));
    SAY(dprintf(p[0], "%s", ""));
    shutdown(p[0], SHUT_WR);
    say("%s", arrived(p[1], 8000));
    SAY(dprintf(-1, "x"));
    signal(SIGPIPE, SIG_IGN);
    SAY(dprintf(p[0], "x"));
}

/* A server as inetd starts it: in a child, the socket is standard input and output. */
static void in_child(int fd, int also_stderr, void (*serve)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        dup2(fd, 0);
        dup2(fd, 1);
        if (also_stderr)
            dup2(fd, 2);
        close(fd);
        serve();
        exit(0);
    }
    close(fd);
    int status;
    waitpid(pid, &status, 0);
    say("status %x", status);
}

static void print_and_scan(void)
{
    int a = 0, b = 0;
    char word[32] = "";
    if (scanf("%d %d %31s", &a, &b, word) != 3)
        exit(9);
    printf("sum %d of %s\n", a + b, word);
    puts("puts");
    putchar('c');
    putchar('\n');
    printf("char %d ", getchar());
    char line[64];
    printf("gets %s", fgets(line, sizeof line, stdin));
    printf("fileno %d %d\n", fileno(stdin), fileno(stdout));
}

static void standard_streams_of_a_child(void)
{
    int p[2];
    connected(p);
    const char *text = "40 2 things\na line\n";
    send(p[0], text, strlen(text), 0);
    in_child(p[1], 0, print_and_scan);
    say("%s", arrived(p[0], 8000));
}

static void complain(void)
{
    fprintf(stderr, "stderr is %s\n", "unbuffered");
    errno = ENOENT;
    perror("perror");
    errno = EPIPE;
    perror(NULL);
    errno = EAGAIN;
    warn("warn %d", 1);
    warnx("warnx");
    printf("stdout comes last\n");
}

static void messages_to_stderr(void)
{
    int p[2];
    connected(p);
    in_child(p[1], 1, complain);
    say("%s", arrived(p[0], 8000));
}

static void what_was_buffered_before(void)
{
    int p[2], file = fileno(tmpfile());
    connected(p);
    must(dup2(file, 1) == 1, "dup2");
    printf("printed before, ");
    dup2(p[0], 1);
    printf("printed after");
    SAY(fflush(stdout));
    say("%s", arrived(p[1], 29));
    dup2(file, 1);
    printf("to the file");
    fflush(stdout);
    char room[64] = "";
    say("%zd %s", pread(file, room, sizeof room - 1, 0), room);
    say("nothing %d", nothing_on(p[1]));
}

static void reopen(void)
{
    int p[2];
    connected(p);
    char name[] = "/tmp/ipc-direct-reopen-XXXXXX";
    int file = mkstemp(name);
    FILE *f = fdopen(p[0], "w");
    fputs("to the socket", f);
    f = freopen(name, "w", f);
    unlink(name);
    say("same number %d", fileno(f) == p[0]);
    fputs("to the file", f);
    SAY(fclose(f));
    say("%s", arrived(p[1], 100));
    char room[64] = "";
    say("%zd %s", read(file, room, sizeof room - 1), room);
}

/* A stream of libc's own, whose descriptor is closed without anybody being asked. */
static void closed_by_libc(void)
{
    int u = socket(AF_INET, SOCK_DGRAM, 0);
    FILE *f = fdopen(u, "w");
    SAY(fclose(f));
    SAY(close(u));
    int p[2];
    connected(p);
    say("used again %d", p[0] == u || p[1] == u);
    SAY(send(p[0], "x", 1, 0));
    say("%s", arrived(p[1], 1));
}

static void closed_and_used_again(void)
{
    int p[2], q[2];
    connected(p);
    connected(q);
    dup2(p[0], 1);
    printf("first");
    SAY(fclose(stdout));
    say("%s", arrived(p[1], 5));
    SAY(fileno(stdout));
    SAY(dup2(q[0], 1));
    SAY(dprintf(1, "by number"));
    say("%s", arrived(q[1], 9));
}

static void flushed_at_exit(void)
{
    int p[2];
    connected(p);
    pid_t pid = fork();
    if (pid == 0) {
        FILE *f = fdopen(p[0], "w");
        fputs("at exit", f);
        exit(0);
    }
    close(p[0]);
    waitpid(pid, NULL, 0);
    say("%s", arrived(p[1], 100));
}

/* Streams with callbacks have no wide characters: a pipe's must stay libc's own. */
static void wide_characters_to_a_pipe(void)
{
    int p[2];
    must(pipe(p) == 0, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        dup2(p[1], 1);
        for (int i = 0; i < 2000; i++)
            wprintf(L"wide %ls %d\n", L"string", i);
        exit(0);
    }
    close(p[1]);
    unsigned long sum = 0, n = 0;
    char room[1000];
    ssize_t r;
    while ((r = read(p[0], room, sizeof room)) > 0)
        for (ssize_t i = 0; i < r; i++, n++)
            sum = sum * 31 + (unsigned char)room[i];
    int status;
    waitpid(pid, &status, 0);
    say("status %x, %lu bytes, sum %lu", status, n, sum);
}

static const struct test TESTS[] = {
    {"lines_both_ways", "user", lines_both_ways},
    {"separate_streams_for_reading_and_writing", "user", separate_streams_for_reading_and_writing},
    {"buffering_modes", "user", buffering_modes},
    {"modes_and_errors", "user", modes_and_errors},
    {"broken_pipe", "user", broken_pipe},
    {"megabytes", "user", megabytes},
    {"dprintf_and_friends", "user", dprintf_and_friends},
    {"standard_streams_of_a_child", "user", standard_streams_of_a_child},
    {"messages_to_stderr", "user", messages_to_stderr},
    {"what_was_buffered_before", "user", what_was_buffered_before},
    {"reopen", "user", reopen},
    {"closed_by_libc", "user", closed_by_libc},
    {"closed_and_used_again", "user", closed_and_used_again},
    {"wide_characters_to_a_pipe", "any", wide_characters_to_a_pipe},
    {"flushed_at_exit", "user", flushed_at_exit},
};

int main(int argc, char **argv)
{
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

// C++ streams on standard descriptors that are sockets: libstdc++ keeps libc's streams of the time when it starts.
#include <iostream>
#include <string>

#include "common.h"

// Execs itself with the socket as its standard descriptors; the second half is `serve`.
static void standard_streams_after_exec()
{
    int p[2];
    connected(p);
    const char text[] = "21 x\nline\n";
    send(p[0], text, sizeof text - 1, 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(p[1], 0);
        dup2(p[1], 1);
        execl("/proc/self/exe", "iostreams", "serve", nullptr);
        _exit(9);
    }
    close(p[1]);
    int status;
    waitpid(pid, &status, 0);
    say("status %x", status);
    say("%s", arrived(p[0], 8000));
}

static int serve()
{
    int n = 0;
    std::string word, line;
    std::cin >> n >> word;
    std::cin.ignore();
    std::getline(std::cin, line);
    std::cout << "twice " << 2 * n << ' ' << word << std::endl;
    printf("printf between\n");
    std::cout << line << "\n";
    return 0;
}

static const test TESTS[] = {
    {"standard_streams_after_exec", "user", standard_streams_after_exec},
};

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "serve") == 0)
        return serve();
    return run_tests(TESTS, sizeof TESTS / sizeof *TESTS, argc, argv);
}

/* A program without the shim (it is linked statically): answers twice on standard input and output, as ANSWER in
 * programs/inherit.py does. With an argument, standard input is a listener. */
#include <sys/socket.h>
#include <unistd.h>

static char buffer[1 << 20];

static int answer(int in, int out, const char *word)
{
    size_t length = 4;
    for (size_t i = 0; i < length; i++)
        buffer[i] = word[i];
    do {
        ssize_t n = read(in, buffer + length, sizeof buffer - length);
        if (n <= 0)
            return 1;
        length += (size_t)n;
    } while (buffer[length - 1] != '.');
    for (size_t sent = 0; sent < length;) {
        ssize_t n = write(out, buffer + sent, length - sent);
        if (n <= 0)
            return 2;
        sent += (size_t)n;
    }
    return 0;
}

int main(int argc, char **argv)
{
    (void)argv;
    int in = 0, out = 1;
    if (argc > 1)
        in = out = accept(0, NULL, NULL);
    int failed = answer(in, out, "one:");
    return failed ? failed : answer(in, out, "two:");
}

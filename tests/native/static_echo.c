/* A static program, which no library can be preloaded into: copies descriptor argv[1] to argv[2] until the end. */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char data[4096];
    ssize_t got;
    if (argc != 3)
        return 2;
    int in = atoi(argv[1]), out = atoi(argv[2]);
    while ((got = read(in, data, sizeof data)) > 0)
        for (ssize_t sent = 0, n; sent < got; sent += n)
            if ((n = write(out, data + sent, (size_t)(got - sent))) < 0)
                return 3;
    return got < 0 ? 4 : 0;
}

/* A library whose constructor uses sockets: it connects to itself before dlopen(3) returns. */
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Both ends of its connection, or -1. */
int library_fds[2] = {-1, -1};

__attribute__((constructor)) static void connect_to_myself(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    char word[5];
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&addr, len) == 0 && listen(listener, 1) == 0 &&
        getsockname(listener, (struct sockaddr *)&addr, &len) == 0 &&
        connect(client, (struct sockaddr *)&addr, len) == 0) {
        int server = accept(listener, NULL, NULL);
        if (send(client, "hello", 5, 0) == 5 && recv(server, word, 5, MSG_WAITALL) == 5 &&
            memcmp(word, "hello", 5) == 0) {
            library_fds[0] = client;
            library_fds[1] = server;
        }
    }
    close(listener);
}

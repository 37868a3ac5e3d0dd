/* The least that a server of one-shot commands can do: take a connection, read once, answer OK, close.
 *
 *     server PATH    at a UNIX socket
 *     server         at a free port of loopback
 *
 * Its rate under the client beside it is what this machine allows. It says its port, or 0, once it listens.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 4096 };

int main(int argc, char **argv) {
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (argc > 2 || (argc == 2 && strlen(argv[1]) >= sizeof local.sun_path)) {
        fprintf(stderr, "usage: server [PATH]\n");
        return 64;
    }
    if (argc == 2) strcpy(local.sun_path, argv[1]);
    struct sockaddr *address = argc == 2 ? (struct sockaddr *)&local : (struct sockaddr *)&port;
    socklen_t size = argc == 2 ? sizeof local : sizeof port;
    int listening = socket(address->sa_family, SOCK_STREAM, 0);
    if (bind(listening, address, size) || listen(listening, BACKLOG)) {
        perror("server");
        return 1;
    }
    if (argc == 1) getsockname(listening, address, &size);
    printf("%d\n", ntohs(port.sin_port));
    fflush(stdout);
    for (;;) {
        char frame[2048];
        int client = accept(listening, NULL, NULL);
        if (client < 0) continue;
        /* Who connects to this server has its frame at hand, so waiting for one client holds up no other for long. */
        if (recv(client, frame, sizeof frame, 0) > 0) send(client, "OK", 2, MSG_NOSIGNAL);
        close(client);
    }
}

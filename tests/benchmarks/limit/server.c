/* The least that a server of one-shot commands can do: take a connection, read once, answer OK, close.
 *
 *     server PATH
 *
 * Its rate under the client beside it is what this machine allows on a UNIX socket. It says "ready" once it listens.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 4096 };

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: server PATH\n");
        return 64;
    }
    strcpy(address.sun_path, argv[1]);
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, BACKLOG)) {
        perror(argv[1]);
        return 1;
    }
    puts("ready");
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

/* The least that a server of kept connections can do: say "ok" to whatever it reads.
 *
 *     http
 *
 * It takes what one read brings for one request, and says its port on 127.0.0.1 once it listens.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096, MOST = 1024 };

static const char answer[] =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{\"result\":\"ok\"}";

int main(void) {
    static struct pollfd watched[MOST];
    static char request[1 << 20];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0), at_once = 1;
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, BACKLOG) ||
        getsockname(listening, (struct sockaddr *)&address, &size)) {
        perror("127.0.0.1");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    watched[0] = (struct pollfd){.fd = listening, .events = POLLIN};
    for (nfds_t count = 1;;) {
        poll(watched, count, -1);
        if (watched[0].revents && count < MOST) {
            int client = accept(listening, NULL, NULL);
            setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
            watched[count++] = (struct pollfd){.fd = client, .events = POLLIN};
        }
        for (nfds_t one = 1; one < count; one++) {
            if (!watched[one].revents) continue;
            if (recv(watched[one].fd, request, sizeof request, 0) > 0) {
                send(watched[one].fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
            } else {
                close(watched[one].fd);
                watched[one--] = watched[--count];
            }
        }
    }
}

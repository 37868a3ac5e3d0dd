/* Asks as fast as its threads can, each waiting for one answer before it asks again, and prints how many were right.
 *
 *     client oneshot PATH SECONDS THREADS    one alloc on each connection to a UNIX socket
 *     client tcp PORT SECONDS THREADS        likewise to a port of loopback
 *     client http PORT FILE THREADS          the requests of FILE, once each, on one connection a thread
 *
 * FILE holds requests, each after a line with its length in bytes. What is printed is "ANSWERED WRONG SECONDS".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 512, ANSWER_BYTES = 1 << 16 };

static struct sockaddr_un local = {.sun_family = AF_UNIX};
static struct sockaddr_in remote = {.sin_family = AF_INET};
static struct sockaddr *peer = (struct sockaddr *)&local;
static socklen_t peer_size = sizeof local;
static const struct linger reset = {.l_onoff = 1, .l_linger = 0};
static double end_s;
static char *requests, *requests_end;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static atomic_long answered, wrong;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *ask_once_a_connection(void *number) {
    long right = 0, others = 0;
    char frame[128], answer[8];
    for (long turns = 0; now_s() < end_s; turns++) {
        int size = snprintf(frame, sizeof frame, "alloc,slot=limit-%d-%ld-%ld,credits=5", (int)getpid(), (long)number, turns);
        int server = socket(peer->sa_family, SOCK_STREAM, 0);
        /* Closed by a reset, a connection leaves no port that waits. */
        if (peer->sa_family == AF_INET) setsockopt(server, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        int ok = !connect(server, peer, peer_size) && send(server, frame, (size_t)size, MSG_NOSIGNAL) == size &&
                 recv(server, answer, sizeof answer, 0) == 2 && !memcmp(answer, "OK", 2);
        ok ? right++ : others++;
        close(server);
    }
    answered += right;
    wrong += others;
    return NULL;
}

static char *next_request(size_t *size) {
    char *request = NULL;
    pthread_mutex_lock(&turn);
    if (requests < requests_end) {
        *size = strtoul(requests, &request, 10);
        request++;
        requests = request + *size;
    }
    pthread_mutex_unlock(&turn);
    return request;
}

/* Reads one answer, and says whether its status is 200; -1 if the server is gone. */
static int read_answer(int server, char *answer) {
    size_t size = 0, whole = 0;
    do {
        ssize_t more = recv(server, answer + size, ANSWER_BYTES - size - 1, 0);
        if (more <= 0) return -1;
        answer[size += (size_t)more] = 0;
        char *head_end = strstr(answer, "\r\n\r\n"), *length = strcasestr(answer, "\r\ncontent-length:");
        if (head_end && length) whole = (size_t)(head_end + 4 - answer) + strtoul(length + 17, NULL, 10);
    } while (!whole || size < whole);
    return !strncmp(answer, "HTTP/1.1 200", 12);
}

static void *ask_over_http(void *unused) {
    (void)unused;
    long right = 0, others = 0;
    size_t size = 0;
    int at_once = 1;
    char *answer = malloc(ANSWER_BYTES), *request;
    int server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
    if (connect(server, (struct sockaddr *)&remote, sizeof remote)) perror("connect");
    while ((request = next_request(&size))) {
        size_t sent = 0;
        while (sent < size) {
            ssize_t more = send(server, request + sent, size - sent, MSG_NOSIGNAL);
            if (more < 0) break;
            sent += (size_t)more;
        }
        int ok = read_answer(server, answer);
        ok == 1 ? right++ : others++;
        if (ok < 0) break;
    }
    close(server);
    free(answer);
    answered += right;
    wrong += others;
    return NULL;
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        perror(path);
        exit(1);
    }
    size_t size = (size_t)ftell(file);
    rewind(file);
    requests = malloc(size + 1);
    requests_end = requests + fread(requests, 1, size, file);
    *requests_end = 0;
    fclose(file);
}

int main(int argc, char **argv) {
    int http = argc == 5 && !strcmp(argv[1], "http"), tcp = argc == 5 && !strcmp(argv[1], "tcp");
    int threads = argc == 5 ? atoi(argv[4]) : 0;
    if (argc != 5 || !(http || tcp || !strcmp(argv[1], "oneshot")) || threads < 1 || threads > MOST_THREADS ||
        strlen(argv[2]) >= sizeof local.sun_path) {
        fprintf(stderr, "usage: client oneshot PATH SECONDS THREADS | client tcp PORT SECONDS THREADS | client http PORT FILE THREADS\n");
        return 64;
    }
    if (http || tcp) {
        remote.sin_port = htons((uint16_t)atoi(argv[2]));
        remote.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        peer = (struct sockaddr *)&remote;
        peer_size = sizeof remote;
    } else {
        strcpy(local.sun_path, argv[2]);
    }
    if (http) read_requests(argv[3]);
    pthread_t thread[MOST_THREADS];
    double begun_s = now_s();
    if (!http) end_s = begun_s + atof(argv[3]);
    for (long number = 0; number < threads; number++)
        pthread_create(&thread[number], NULL, http ? ask_over_http : ask_once_a_connection, (void *)number);
    for (int number = 0; number < threads; number++) pthread_join(thread[number], NULL);
    printf("%ld %ld %.6f\n", answered, wrong, now_s() - begun_s);
    return wrong != 0;
}

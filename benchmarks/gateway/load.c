/* Load on a gateway from one thread: so many connections, each asks again as soon as it has its answer.
 *
 *     cc -O2 -o load load.c && ./load PORT REQUEST_FILE CONNECTIONS SECONDS
 *
 * The file is a whole HTTP request; the first ######## in it is another number each time, so that no two are the same.
 * After SECONDS nothing more is asked, but what was asked is waited for. Prints one JSON object: "good" and
 * "per_second" are of the SECONDS, "answered" is everything. Times are in microseconds. In streams the clock that
 * upstream.c put into each chunk (|nanoseconds|) tells how long that chunk was on its way. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_S = 30 }; /* with answers that are late */

typedef struct {
    int fd, asking, chunks;
    int64_t begun, first;
    size_t have, need, seen; /* need 0: the length is not known; seen: what was looked at for clocks */
    int chunked;
    char *in;
    size_t room;
} Conn;

typedef struct { int64_t *v; size_t n, room; } Series;

static Series latency, first_token, delay, first_delay;
static long errors, good, answered, chunks, asked;
static struct sockaddr_in at;
static int poll_fd;
static char request[1 << 22], *number; /* number: where it has to be another one each time */
static size_t request_size;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void add(Series *s, int64_t v) {
    if (s->n == s->room) s->v = realloc(s->v, (s->room = s->room ? s->room * 2 : 1 << 16) * sizeof *s->v);
    s->v[s->n++] = v;
}

static int rising(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void show(const char *name, Series *s) {
    qsort(s->v, s->n, sizeof *s->v, rising);
    double p50 = s->n ? s->v[s->n / 2] / 1e3 : -1, p99 = s->n ? s->v[(size_t)(s->n * .99)] / 1e3 : -1;
    printf(", \"%s_p50_us\": %.1f, \"%s_p99_us\": %.1f", name, p50, name, p99);
}

static void open_connection(Conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&at, sizeof at)) { perror("load: connect"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static void ask(Conn *c, int64_t now) {
    char digits[9];
    if (number) {
        sprintf(digits, "%08lx", asked++ & 0xffffffff);
        memcpy(number, digits, 8);
    }
    c->asking = 1;
    c->begun = now;
    c->have = c->need = c->seen = 0;
    c->chunked = c->chunks = 0;
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) errors++;
}

static void look_for_clocks(Conn *c, int64_t now) {
    for (;;) {
        char *bar = memchr(c->in + c->seen, '|', c->have - c->seen);
        if (!bar) return;
        char *end = memchr(bar + 1, '|', c->in + c->have - bar - 1);
        if (!end) { c->seen = bar - c->in; return; }
        int64_t way = now - strtoll(bar + 1, NULL, 10);
        if (c->chunks++ == 0) {
            add(&first_token, now - c->begun);
            add(&first_delay, way);
        } else add(&delay, way);
        chunks++;
        c->seen = end + 1 - c->in;
    }
}

/* 1: the answer is whole. -1: the connection is of no use any more. */
static int readable(Conn *c) {
    if (c->room - c->have < 16384) c->in = realloc(c->in, c->room *= 2);
    ssize_t got = recv(c->fd, c->in + c->have, c->room - c->have - 1, 0);
    if (got <= 0) return -1;
    c->have += got;
    c->in[c->have] = 0;
    look_for_clocks(c, now_ns());
    if (!c->need && !c->chunked) {
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return 0;
        char *length = strcasestr(c->in, "content-length:");
        if (length && length < end) c->need = end + 4 - c->in + strtoul(length + 15, NULL, 10);
        else c->chunked = 1;
    }
    if (c->chunked) return c->have > 5 && !memcmp(c->in + c->have - 5, "0\r\n\r\n", 5);
    return c->have >= c->need;
}

int main(int argc, char **argv) {
    if (argc < 5) { fprintf(stderr, "load PORT REQUEST_FILE CONNECTIONS SECONDS\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    int count = atoi(argv[3]);
    double seconds = atof(argv[4]);
    at = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    FILE *file = fopen(argv[2], "rb");
    if (!file) { perror("load: request"); return 2; }
    request_size = fread(request, 1, sizeof request, file);
    number = memmem(request, request_size, "########", 8);
    asked = now_ns(); /* not the numbers of the run before */
    poll_fd = epoll_create1(0);
    Conn *conns = calloc(count, sizeof *conns);
    for (int i = 0; i < count; i++) {
        conns[i].in = malloc(conns[i].room = 65536);
        open_connection(&conns[i]);
    }
    int64_t begin = now_ns(), end = begin + (int64_t)(seconds * 1e9);
    for (int i = 0; i < count; i++) ask(&conns[i], now_ns());
    struct epoll_event found[256];
    int left = count;
    while (left && now_ns() < end + PATIENCE_S * 1000000000LL) {
        int n = epoll_wait(poll_fd, found, 256, 100);
        for (int i = 0; i < n; i++) {
            Conn *c = found[i].data.ptr;
            int state = c->asking ? readable(c) : -1;
            if (state == 0) continue;
            int64_t now = now_ns();
            if (c->asking && (state < 0 || memcmp(c->in + 8, " 200", 4))) errors++;
            else if (c->asking) {
                answered++;
                add(&latency, now - c->begun);
                good += now < end;
            }
            if (c->asking && now >= end) left--;
            c->asking = 0;
            if (state < 0) close(c->fd);
            if (now >= end) continue;
            if (state < 0) open_connection(c);
            ask(c, now);
        }
    }
    printf("{\"good\": %ld, \"answered\": %ld, \"errors\": %ld, \"per_second\": %.1f, \"chunks\": %ld", good, answered,
           errors + left, good / seconds, chunks);
    show("latency", &latency);
    show("first_token", &first_token);
    show("first_delay", &first_delay);
    show("chunk_delay", &delay);
    printf("}\n");
    return 0;
}

/* A model provider that costs almost nothing: answers OpenAI chat and Anthropic messages from one thread, so that it is
 * never the limit when a gateway in front of it is measured.
 *
 *     cc -O2 -o upstream upstream.c && ./upstream PORT
 *
 * The model's name in the request says how it answers: with "paced" in it a stream has 50 chunks, the first after 20 ms
 * and one every 10 ms; any other stream has them all at once. Each chunk holds the monotonic clock in nanoseconds
 * between two bars (|123|), so that the one who reads it can tell how long it was on its way. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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

enum { CHUNKS = 50, FIRST_MS = 20, EVERY_MS = 10, MOST = 1 << 16 };

typedef struct {
    int fd, anthropic, chunk; /* chunk: the next one to send, or -1 */
    int64_t due;
    size_t have, need; /* bytes of the request that came, and that it has */
    char *in;
    size_t room;
} Conn;

static Conn *conns[MOST];
static int streaming; /* how many streams are paced now */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(Conn *c, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN) { usleep(50); continue; }
            return;
        }
        data += sent;
        size -= sent;
    }
}

static size_t chunked(char *out, const char *data, size_t size) {
    int head = sprintf(out, "%zx\r\n", size);
    memcpy(out + head, data, size);
    memcpy(out + head + size, "\r\n", 2);
    return head + size + 2;
}

static size_t frame(Conn *c, int n, char *out) {
    char data[512];
    int size;
    if (c->anthropic)
        size = sprintf(data,
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":"
            "{\"type\":\"text_delta\",\"text\":\"|%lld| token %d\"}}\n\n", (long long)now_ns(), n);
    else
        size = sprintf(data,
            "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"m\","
            "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"|%lld| token %d\"},\"logprobs\":null,"
            "\"finish_reason\":null}]}\n\n", (long long)now_ns(), n);
    return chunked(out, data, size);
}

static size_t ending(Conn *c, char *out) {
    const char *openai =
        "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"m\","
        "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n"
        "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"m\","
        "\"choices\":[],\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":50,\"total_tokens\":250}}\n\n"
        "data: [DONE]\n\n";
    const char *anthropic =
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\","
        "\"stop_sequence\":null},\"usage\":{\"output_tokens\":50}}\n\n"
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    const char *data = c->anthropic ? anthropic : openai;
    size_t size = chunked(out, data, strlen(data));
    memcpy(out + size, "0\r\n\r\n", 5);
    return size + 5;
}

static size_t opening(Conn *c, char *out) {
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    size_t size = sizeof head - 1;
    memcpy(out, head, size);
    if (c->anthropic) {
        const char *data =
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_bench\",\"type\":\"message\","
            "\"role\":\"assistant\",\"model\":\"m\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,"
            "\"usage\":{\"input_tokens\":200,\"output_tokens\":1}}}\n\n"
            "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
            "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n";
        size += chunked(out + size, data, strlen(data));
    }
    return size;
}

static char whole[2][2048], *number[2]; /* number: where each answer has another one, so that no two are the same */
static size_t whole_size[2];

static void prepare(void) {
    static const char *words[] = {"order", "boxes", "of", "green", "tea", "for", "Friday", "the", "usual", "address", "and",
                                  "two", "cases", "salmon", "please", "confirm", "by", "noon", "thank", "you"};
    static const char *bodies[] = {
        "{\"id\":\"chatcmpl-0000000000000000\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"m\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null},"
        "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":120,\"total_tokens\":320}}",
        "{\"id\":\"msg_bench0000000000000000\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"m\",\"content\":"
        "[{\"type\":\"text\",\"text\":\"%s\"}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,"
        "\"usage\":{\"input_tokens\":200,\"output_tokens\":120}}"};
    char text[640] = "", body[1400];
    for (unsigned i = 0, seed = 1; i < 110; i++, seed = seed * 1103515245 + 12345)
        strcat(strcat(text, i ? " " : ""), words[(seed >> 16) % 20]);
    for (int i = 0; i < 2; i++) {
        int size = sprintf(body, bodies[i], text);
        whole_size[i] = sprintf(whole[i],
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", size, body);
        number[i] = strstr(whole[i], "0000000000000000");
    }
}

static void answer(Conn *c) {
    c->in[c->need] = 0;
    c->anthropic = memmem(c->in, c->need < 200 ? c->need : 200, "/messages", 9) != NULL;
    char *body = strstr(c->in, "\r\n\r\n") + 4;
    size_t size = c->in + c->need - body;
    if (!memmem(body, size, "\"stream\":true", 13) && !memmem(body, size, "\"stream\": true", 14)) {
        char digits[17];
        sprintf(digits, "%016llx", (long long)now_ns());
        memcpy(number[c->anthropic], digits, 16);
        put(c, whole[c->anthropic], whole_size[c->anthropic]);
    } else if (memmem(body, size, "paced", 5)) {
        c->chunk = 0;
        c->due = now_ns() + FIRST_MS * 1000000LL;
        streaming++;
    } else {
        static char out[CHUNKS * 520 + 4096];
        size_t n = opening(c, out);
        for (int i = 0; i < CHUNKS; i++) n += frame(c, i, out + n);
        n += ending(c, out + n);
        put(c, out, n);
    }
}

static void drop(Conn *c) {
    if (c->chunk >= 0) streaming--;
    close(c->fd);
    conns[c->fd] = NULL;
    free(c->in);
    free(c);
}

static void readable(Conn *c) {
    for (;;) {
        if (c->room - c->have < 4096) c->in = realloc(c->in, c->room *= 2);
        ssize_t got = recv(c->fd, c->in + c->have, c->room - c->have - 1, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) { drop(c); return; }
        if (got < 0) break;
        c->have += got;
    }
    while (c->have) {
        if (!c->need) {
            c->in[c->have] = 0;
            char *end = strstr(c->in, "\r\n\r\n");
            if (!end) return;
            char *length = strcasestr(c->in, "content-length:");
            c->need = end + 4 - c->in + (length && length < end ? strtoul(length + 15, NULL, 10) : 0);
        }
        if (c->have < c->need) return;
        char kept = c->in[c->need];
        answer(c);
        c->in[c->need] = kept;
        c->have -= c->need;
        memmove(c->in, c->in + c->need, c->have);
        c->need = 0;
    }
}

static void pace(void) {
    int64_t now = now_ns();
    for (int fd = 0, left = streaming; fd < MOST && left > 0; fd++) {
        Conn *c = conns[fd];
        if (!c || c->chunk < 0) continue;
        left--;
        if (c->due > now) continue;
        char out[4096];
        size_t n = c->chunk == 0 ? opening(c, out) : 0;
        n += frame(c, c->chunk++, out + n);
        c->due += EVERY_MS * 1000000LL;
        if (c->chunk == CHUNKS) {
            n += ending(c, out + n);
            c->chunk = -1;
            streaming--;
        }
        put(c, out, n);
    }
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    prepare();
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 9000),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) { perror("upstream"); return 1; }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, found[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, found, 256, streaming ? 1 : -1);
        for (int i = 0; i < count; i++) {
            int fd = found[i].data.fd;
            if (fd != listener) {
                if (conns[fd]) readable(conns[fd]);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= MOST) { close(fd); continue; }
                Conn *c = conns[fd] = calloc(1, sizeof *c);
                *c = (Conn){.fd = fd, .chunk = -1, .room = 8192, .in = malloc(8192)};
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
            }
        }
        if (streaming) pace();
    }
}

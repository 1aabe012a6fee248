// The bare exchange that `bench collectives --floor` compares with: one process sends each of the others so many bytes and
// waits for so many back, over stream sockets and poll, all peers at once. No frames, no tokens, no checks.

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Sends and receives what is left of each peer's bytes until all is done. Returns 0, or -1 when a peer is gone.
static int pass(int peers, const int *fds, char **buffers, int64_t *out, int64_t *in) {
    for (;;) {
        struct pollfd polls[peers];
        int left = 0;
        for (int i = 0; i < peers; i++) {
            while (out[i] > 0) {
                ssize_t n = send(fds[i], buffers[i], out[i], MSG_NOSIGNAL | MSG_DONTWAIT);
                if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
                if (n < 0) return -1;
                out[i] -= n;
            }
            polls[i] = (struct pollfd){.fd = fds[i], .events = (in[i] > 0 ? POLLIN : 0) | (out[i] > 0 ? POLLOUT : 0)};
            if (!polls[i].events) polls[i].fd = -1;
            left += polls[i].events != 0;
        }
        if (!left) return 0;
        if (poll(polls, peers, -1) < 0 && errno != EINTR) return -1;
        for (int i = 0; i < peers; i++) {
            if (!(polls[i].revents & (POLLIN | POLLHUP | POLLERR))) continue;
            ssize_t n = recv(fds[i], buffers[i], in[i], MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return -1;
            if (n > 0) in[i] -= n;
        }
    }
}

// The asking side. ns: [layers] how long each took. out, in: [peers] bytes of a layer.
int tokenyard_floor_ask(int peers, const int *fds, char **buffers, const int64_t *out, const int64_t *in, int layers,
                        int64_t *ns) {
    for (int layer = 0; layer < layers; layer++) {
        int64_t sends[peers], receives[peers], began = now_ns();
        for (int i = 0; i < peers; i++) sends[i] = out[i], receives[i] = in[i];
        if (pass(peers, fds, buffers, sends, receives)) return -1;
        ns[layer] = now_ns() - began;
    }
    return 0;
}

// The answering side: `in` bytes come, `out` go back.
int tokenyard_floor_answer(int fd, char *buffer, int64_t out, int64_t in, int layers) {
    for (int layer = 0; layer < layers; layer++) {
        int64_t none = 0, sends = out, receives = in;
        if (pass(1, &fd, &buffer, &none, &receives)) return -1;
        none = 0;
        if (pass(1, &fd, &buffer, &sends, &none)) return -1;
    }
    return 0;
}

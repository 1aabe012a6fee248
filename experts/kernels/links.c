// Frames between the members of an epoch over stream sockets (Unix or TCP), all peers at once in both directions, so that
// full buffers at both ends hold up nobody.
//
// A connection lives through epochs. Each frame names its epoch: older ones are dropped when they are read, and a frame
// that nobody asked for yet stays in the connection, where at most one is read ahead, with the head behind it. Every wait is
// one poll over all peers and a wake descriptor, with a deadline. Calls hold the hub's lock but while they poll, so that
// `abort` may come from any thread; `missing` and `bytes` are read without it.

#define _GNU_SOURCE
#include "links.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ROW_BYTES (LINKS_ROW * sizeof(int64_t))
#define MOST_MEMBERS (1 << 16)

_Static_assert(sizeof(frame) == 64, "a head has 64 bytes");
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are written as they lie in memory, little-endian"
#endif

hub *tokenyard_links_hub(void) {
    hub *h = calloc(1, sizeof(hub));
    if (h) pthread_mutex_init(&h->lock, NULL);
    return h;
}

void tokenyard_links_free_hub(hub *h) {
    pthread_mutex_destroy(&h->lock);
    free(h);
}

// fd: connected, non-blocking, owned by the caller, who closes it after `free_peer`.
peer *tokenyard_links_peer(int fd, uint32_t incarnation, uint32_t theirs, uint64_t most) {
    peer *p = calloc(1, sizeof(peer));
    if (p) p->fd = fd, p->incarnation = incarnation, p->theirs = theirs, p->most = most;
    for (int i = 0; p && i < LINKS_NOTED; i++) p->over[i] = p->left[i] = -1;
    return p;
}

void tokenyard_links_free_peer(peer *p) {
    free(p->out);
    free(p->body);
    free(p);
}

circle *tokenyard_links_circle(hub *h, int32_t size, int32_t me, uint32_t epoch, peer **peers) {
    circle *c = calloc(1, sizeof(circle));
    if (!c) return NULL;
    c->hub = h, c->size = size, c->me = me, c->epoch = epoch;
    c->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    c->peer = calloc(size, sizeof(peer *));
    c->missing = calloc(size, 1);
    c->polls = calloc(size + 1, sizeof(struct pollfd));
    c->polled = calloc(size + 1, sizeof(int32_t));
    if (c->wake >= 0 && c->peer && c->missing && c->polls && c->polled) {
        memcpy(c->peer, peers, size * sizeof(peer *));
        return c;
    }
    if (c->wake >= 0) close(c->wake);
    free(c->peer), free(c->missing), free(c->polls), free(c->polled), free(c);
    return NULL;
}

void tokenyard_links_free_circle(circle *c) {
    close(c->wake);
    free(c->peer), free(c->missing), free(c->polls), free(c->polled), free(c);
}

uint8_t *tokenyard_links_missing(circle *c) { return c->missing; }
uint64_t *tokenyard_links_bytes(circle *c) { return &c->bytes; }

void tokenyard_links_wake(circle *c) {
    uint64_t one = 1;
    ssize_t done = write(c->wake, &one, sizeof(one));
    (void)done;  // full: it wakes already
}

int links_fail(finding *f, int outcome, int member, int error, const frame *found) {
    f->member = member, f->error = error;
    if (found) f->found = *found;
    return outcome;
}

int links_enter(circle *c, finding *f) {
    pthread_mutex_lock(&c->hub->lock);
    c->busy = c->used = 1;
    *f = (finding){.member = -1};
    return c->over ? OVER : DONE;
}

static void await(circle *c, int member, int awaited) {
    __atomic_store_n(&c->missing[member], awaited, __ATOMIC_RELAXED);
}

static void await_nobody(circle *c) {
    for (int m = 0; m < c->size; m++) await(c, m, 0);
}

int links_leave(circle *c, int outcome) {
    if (outcome == DONE) c->busy = 0;
    await_nobody(c);
    pthread_mutex_unlock(&c->hub->lock);
    return outcome;
}

static int grow(uint8_t **buffer, size_t *room, size_t wanted, size_t kept) {
    if (wanted <= *room) return 1;
    size_t more = *room * 2 > wanted ? *room * 2 : wanted;
    void *larger;
    if (posix_memalign(&larger, 64, more)) return 0;
    memcpy(larger, *buffer ? *buffer : larger, kept);
    free(*buffer);
    *buffer = larger, *room = more;
    return 1;
}

// Room for the body of a frame to a member, behind its head and whatever is still on its way; NULL without memory.
uint8_t *links_frame(circle *c, int member, const moment *at, uint32_t rows, uint64_t bytes) {
    peer *p = c->peer[member];
    if (p->out_at == p->out_end) p->out_at = p->out_end = 0;
    if (!grow(&p->out, &p->out_room, p->out_end + sizeof(frame) + bytes, p->out_end)) return NULL;
    frame head = {
        .sequence = p->sent++, .step = at->step, .bytes = bytes, .epoch = c->epoch, .version = at->version, .rows = rows,
        .incarnation = p->incarnation, .layer = (uint16_t)at->layer, .kind = (uint8_t)at->kind, .magic = LINKS_MAGIC,
    };
    memcpy(p->out + p->out_end, &head, sizeof(head));
    uint8_t *body = p->out + p->out_end + sizeof(head);
    p->out_end += sizeof(head) + bytes;
    __atomic_store_n(&c->bytes, c->bytes + sizeof(head) + bytes, __ATOMIC_RELAXED);
    return body;
}

// This end can't go on: the other must hear of it, or it would take the connection for one of the next epoch.
static void broken(peer *p, int error) {
    p->error = error;
    shutdown(p->fd, SHUT_RDWR);
}

// Sends what it can without waiting; whether all has left.
int links_flush(peer *p) {
    while (p->out_at < p->out_end && !p->error) {
        ssize_t n = send(p->fd, p->out + p->out_at, p->out_end - p->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            p->out_at += n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        else if (errno != EINTR)
            broken(p, errno);
    }
    return 1;
}

static void note(int64_t last[LINKS_NOTED], int64_t epoch) {
    memmove(last + 1, last, (LINKS_NOTED - 1) * sizeof(*last));
    last[0] = epoch;
}

static int noted(const int64_t last[LINKS_NOTED], int64_t epoch) {
    int found = 0;
    for (int i = 0; i < LINKS_NOTED; i++) found |= last[i] == epoch;
    return found;
}

static int is_control(const frame *h) { return h->kind == ABORT || h->kind == LEAVE; }

static void told(peer *p, const frame *h) {
    note(h->kind == ABORT ? p->over : p->left, h->epoch);
    p->received++;
}

static int wellformed(const peer *p, const frame *h) {
    if (h->magic != LINKS_MAGIC || h->sequence != p->received || h->incarnation != p->theirs) return 0;
    if (h->kind < MEET || h->kind > LEAVE || h->flags || h->unused[0] || h->unused[1]) return 0;
    if (h->kind == HEADER) return h->bytes == h->rows * ROW_BYTES && h->rows > 0 && h->rows <= MOST_MEMBERS;
    if (h->kind == IDS || h->kind == ROWS || h->kind == SUMS) return h->bytes <= p->most;
    return h->bytes == 0;
}

// More of a frame has come. A control frame is noted and forgotten, any other that is whole is ready to be taken.
static void came(peer *p) {
    int head_only = p->got == sizeof(frame);
    if (head_only && !wellformed(p, &p->head)) {
        p->malformed = 1, broken(p, EPROTO);
    } else if (head_only && is_control(&p->head)) {
        told(p, &p->head), p->got = 0;
    } else if (head_only && !grow(&p->body, &p->body_room, p->head.bytes + 1, 0)) {
        broken(p, ENOMEM);
    } else if (p->got >= sizeof(frame) && p->got == sizeof(frame) + p->head.bytes) {
        p->ready = 1, p->received++;
    }
}

// Reads into a frame, or the head behind one that is ready. Whether something came.
static int take(peer *p, void *to, size_t want, size_t *got) {
    ssize_t n;
    do n = recv(p->fd, to, want, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0) *got += n;
    else if (n == 0) p->error = -1;
    else if (errno != EAGAIN && errno != EWOULDBLOCK) broken(p, errno);
    return n > 0;
}

// Reads until a frame is ready or nothing is there.
static void fill(peer *p) {
    while (!p->ready && !p->error) {
        int in_head = p->got < sizeof(frame);
        uint8_t *to = in_head ? (uint8_t *)&p->head + p->got : p->body + (p->got - sizeof(frame));
        size_t want = in_head ? sizeof(frame) - p->got : sizeof(frame) + p->head.bytes - p->got;
        if (!take(p, to, want, &p->got)) return;
        came(p);
    }
}

static int reads(const peer *p) { return !p->error && !(p->ready && p->ahead == sizeof(frame)); }

// What says that a member has ended the epoch may lie behind a frame that is ready: reads on up to the next other head.
static void look_ahead(peer *p) {
    while (reads(p) && take(p, (uint8_t *)&p->next + p->ahead, sizeof(frame) - p->ahead, &p->ahead))
        if (p->ahead == sizeof(frame) && wellformed(p, &p->next) && is_control(&p->next)) told(p, &p->next), p->ahead = 0;
}

static void read_on(peer *p) {
    if (p->ready) look_ahead(p);
    else fill(p);
}

// The frame that is ready has been taken.
void links_drop(peer *p) {
    p->head = p->next, p->got = p->ahead;
    p->ready = 0, p->ahead = 0;
    came(p);
}

// Whether a frame of this epoch waits to be taken; older ones are dropped on the way.
static int has_frame(circle *c, peer *p) {
    while (p->ready && p->head.epoch < c->epoch) {
        links_drop(p);
        fill(p);
    }
    return p->ready && p->head.epoch == c->epoch;
}

// What is wrong with a member's connection, DONE = nothing that matters to this call.
static int trouble(circle *c, int m, int expected, finding *f) {
    peer *p = c->peer[m];
    int here = has_frame(c, p), missing = expected && !here, needed = missing || p->out_at < p->out_end;
    if (p->malformed) return links_fail(f, MALFORMED, m, 0, &p->head);
    if (noted(p->over, c->epoch)) return links_fail(f, LEFT, m, 0, NULL);
    if (p->error && needed) return links_fail(f, DEAD, m, p->error, NULL);
    if (needed && (noted(p->left, c->epoch) || (p->ready && !here))) return links_fail(f, LEFT, m, 0, NULL);
    await(c, m, missing);
    return DONE;
}

int64_t links_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Poll what `n` entries of c->polls name, without the lock; how many have something, 0 = the deadline passed.
static int sleep_until(circle *c, int n, int64_t until) {
    pthread_mutex_unlock(&c->hub->lock);
    int found;
    do {
        int64_t left = until - links_now();
        struct timespec t = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
        found = ppoll(c->polls, n, until < 0 ? NULL : &t, NULL);
    } while (found < 0 && errno == EINTR);
    pthread_mutex_lock(&c->hub->lock);
    if (c->polls[0].revents) {
        uint64_t count;
        ssize_t done = read(c->wake, &count, sizeof(count));
        (void)done;
    }
    return found;
}

// Until all that is on its way has left and a frame of this epoch has come from every member that `from` names; what these
// frames say is the caller's to check. Once the circle is over nothing is read: what comes may be for the next one, which
// would sleep on beside it. Called with the hub's lock.
int links_run(circle *c, const uint8_t *from, const moment *at, finding *f) {
    for (;;) {
        int n = 1, waits = 0, late = -1;
        if (c->over) return OVER;
        c->polls[0] = (struct pollfd){.fd = c->wake, .events = POLLIN};
        for (int m = 0; m < c->size; m++) {
            peer *p = c->peer[m];
            if (!p) continue;
            short events = links_flush(p) ? 0 : POLLOUT;
            int outcome = trouble(c, m, from[m], f);
            if (outcome) return outcome;
            if (events || c->missing[m]) waits++, late = m;
            if (reads(p)) events |= POLLIN;
            if (events) c->polled[n] = m, c->polls[n++] = (struct pollfd){.fd = p->fd, .events = events};
        }
        if (!waits) return DONE;
        int found = sleep_until(c, n, at->until);
        if (c->over) return OVER;  // what has come is a later circle's, whose poll would not see it any more
        if (found == 0) return links_fail(f, LATE, late, 0, NULL);
        if (found < 0) return links_fail(f, DEAD, late, errno, NULL);
        for (int i = 1; i < n; i++)
            if (c->polls[i].revents & (POLLIN | POLLHUP | POLLERR)) read_on(c->peer[c->polled[i]]);
    }
}

// Whether the frame that came from a member is of this moment.
int links_fits(const peer *p, const moment *at) {
    const frame *h = &p->head;
    if (h->kind != at->kind) return 0;
    return at->kind == MEET || at->kind == HEADER ||
           (h->step == at->step && h->layer == (uint16_t)at->layer && h->version == at->version);
}

// Everyone says that it is here. whom: the members that must; say: those of them that were not told yet.
int tokenyard_links_meet(circle *c, const uint8_t *whom, const uint8_t *say, int64_t until, finding *f) {
    moment at = {.kind = MEET, .until = until};
    int outcome = links_enter(c, f);
    for (int m = 0; m < c->size && !outcome; m++) {
        if (!say[m]) continue;
        if (!links_frame(c, m, &at, 0, 0)) outcome = NO_MEMORY;
        else links_flush(c->peer[m]);
    }
    if (!outcome) outcome = links_run(c, whom, &at, f);
    for (int m = 0; m < c->size && !outcome; m++) {
        if (!whom[m]) continue;
        if (!links_fits(c->peer[m], &at)) outcome = links_fail(f, ASTRAY, m, 0, &c->peer[m]->head);
        links_drop(c->peer[m]);
    }
    return links_leave(c, outcome);
}

static int send_header(circle *c, int member, const moment *at, const int64_t *rows, size_t bytes) {
    uint8_t *body = links_frame(c, member, at, bytes / ROW_BYTES, bytes);
    if (!body) return NO_MEMORY;
    memcpy(body, rows, bytes);
    links_flush(c->peer[member]);
    return DONE;
}

static int take_header(circle *c, int member, const moment *at, int64_t *rows, size_t bytes, finding *f) {
    peer *p = c->peer[member];
    if (!links_fits(p, at) || p->head.bytes != bytes) return links_fail(f, ASTRAY, member, 0, &p->head);
    memcpy(rows, p->body, bytes);
    links_drop(p);
    return DONE;
}

// rows: [size, LINKS_ROW] what the members bring to a header, of which this one has its own. leader: through whom they go
// to all, which takes 2 (size - 1) frames; -1: each to each, which takes size (size - 1) and wakes those that sleep.
int tokenyard_links_header(circle *c, int64_t *rows, uint64_t step, int32_t leader, int64_t until, finding *f) {
    moment at = {.kind = HEADER, .step = step, .until = until};
    int64_t *mine = rows + (size_t)c->me * LINKS_ROW;
    uint8_t from[c->size];
    memset(from, 0, c->size);
    int outcome = links_enter(c, f), leads = leader < 0 || leader == c->me;
    for (int m = 0; m < c->size && !outcome; m++) {
        if (m == c->me) continue;
        from[m] = leads || m == leader;
        if (leader < 0 || m == leader) outcome = send_header(c, m, &at, mine, ROW_BYTES);
    }
    if (!outcome) outcome = links_run(c, from, &at, f);
    for (int m = 0; m < c->size && !outcome; m++)
        if (from[m] && leads) outcome = take_header(c, m, &at, rows + (size_t)m * LINKS_ROW, ROW_BYTES, f);
    if (!leads && !outcome) outcome = take_header(c, leader, &at, rows, c->size * ROW_BYTES, f);
    if (leader == c->me) {
        for (int m = 0; m < c->size && !outcome; m++)
            if (m != c->me) outcome = send_header(c, m, &at, rows, c->size * ROW_BYTES);
        memset(from, 0, c->size);
        if (!outcome) outcome = links_run(c, from, &at, f);
    }
    return links_leave(c, outcome);
}

// Sleeps until some peer has opened a step or gone, or someone woke this circle. 1 = a peer, 0 = woken or until.
int tokenyard_links_idle(circle *c, int64_t until) {
    int woken = 0, news = 0;
    finding unused;
    pthread_mutex_lock(&c->hub->lock);
    while (!news && !woken) {
        int n = 1;
        c->polls[0] = (struct pollfd){.fd = c->wake, .events = POLLIN};
        for (int m = 0; m < c->size && !news; m++) {
            peer *p = c->peer[m];
            if (!p) continue;
            links_flush(p);
            news = trouble(c, m, 1, &unused) != DONE || !c->missing[m];
            c->polled[n] = m, c->polls[n++] = (struct pollfd){.fd = p->fd, .events = POLLIN};
        }
        if (news || c->over) break;
        woken = sleep_until(c, n, until) <= 0 || c->polls[0].revents;
        for (int i = 1; i < n && !c->over; i++)
            if (c->polls[i].revents & (POLLIN | POLLHUP | POLLERR)) read_on(c->peer[c->polled[i]]);
    }
    await_nobody(c);
    news |= c->over;
    pthread_mutex_unlock(&c->hub->lock);
    return news;
}

// This end is out of the epoch: its calls end, and begin no more. After calls that all ended well its peers are said that
// nothing more comes from here; else that the epoch is broken, which ends their calls, too. A connection in the middle of a
// frame of this epoch is ended, and so is one that is too full for this word, behind all that it has; the next epoch makes
// it anew. What a circle that was never used says may wait for those that use the connection.
void tokenyard_links_abort(circle *c) {
    moment at = {0};
    pthread_mutex_lock(&c->hub->lock);
    int first = !c->over;
    c->over = 1;
    at.kind = c->busy ? ABORT : LEAVE;
    for (int m = 0; m < c->size && first; m++) {
        peer *p = c->peer[m];
        if (!p || p->error) continue;
        int whole = p->out_at == p->out_end;
        if ((whole || !c->busy) && links_frame(c, m, &at, 0, 0) && (links_flush(p) || !c->used)) continue;
        shutdown(p->fd, c->busy ? SHUT_RDWR : SHUT_WR);
        if (!p->error) p->error = ECONNABORTED;
    }
    pthread_mutex_unlock(&c->hub->lock);
    tokenyard_links_wake(c);
}

// The process at the other end has died: what has come from it counts, and nothing more is waited for.
void tokenyard_links_died(hub *h, peer *p) {
    pthread_mutex_lock(&h->lock);
    fill(p);
    if (!p->error) p->error = EOWNERDEAD;
    shutdown(p->fd, SHUT_RDWR);  // which ends polls
    pthread_mutex_unlock(&h->lock);
}

// Whether a connection can carry frames of an epoch: reads what is left of those before.
int tokenyard_links_usable(hub *h, peer *p, uint32_t epoch) {
    pthread_mutex_lock(&h->lock);
    fill(p);
    while (p->ready && p->head.epoch < epoch) {
        links_drop(p);
        fill(p);
    }
    int usable = !p->error;
    pthread_mutex_unlock(&h->lock);
    return usable;
}

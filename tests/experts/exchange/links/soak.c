// Soak: the members of many epochs as threads, each with its own hub, over socket pairs that fill; test_sanitizers.py builds
// and runs it. Prints one line and ends with 1 at the first wrong number, and at a call that waits in vain.
//
// All that travels is drawn from (seed, epoch, step, layer, member), so that everyone can check what the others sent. Numbers
// are small integers, whose sums both float32 and bfloat16 hold exactly. A slot of a rank holds the expert of its number.
// An outside thread wakes members, prepares epochs that are given up, and, at a random moment, breaks the epoch.
// Links that were ended are made anew between epochs, all others go on.
//
// Usage: soak SEED SECONDS EPOCHS (as long as both last)

#define _GNU_SOURCE
#include "link_tokens.c"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 4, EXPERTS = 6, TOP_K = 3, LAYERS = 2, STEPS = 6, FEW = 7, MANY = 300, HIDDEN = 48 };
enum { EPOCHS_APART = 16 };  // room for those that are prepared and given up
enum ending { IN_PEACE, BY_ITSELF, FROM_OUTSIDE, CUT, ENDINGS };
static const int64_t PATIENCE = 60000000000;  // ns

// An epoch, as all its members know it.
typedef struct {
    uint32_t epoch;
    int size, steps, hidden, element;
    enum ending ending;
    int victim, other;                    // who is aborted; CUT: the two ends of the link
    uint64_t at;                          // BY_ITSELF: after which step; else ns from the beginning on
    int drops;                            // epochs that are prepared beside it
    int32_t rank[MOST], member[MOST];     // as circles have them: ranks of holders, in order
    int holders, source[MOST];
    int32_t lookup[EXPERTS + 1], home[EXPERTS + 1], expert[EXPERTS], start[EXPERTS + 1];
    int32_t copy_rank[EXPERTS * MOST], copy_slot[EXPERTS * MOST];
    int64_t speed[MOST];
    split_table table;
} plan;

typedef struct {
    int me;
    hub *hub;
    int fd[MOST];
    peer *peer[MOST];
    pthread_mutex_t gate;  // of `now` and `ended`: which circle an outsider aborts
    circle *meeting, *steps, *now;
    traffic *traffic;
    int ended, outcome, done;  // done: steps
} seat;

static uint64_t seed;
static plan P;
static seat seats[MOST];
static int over;  // the members of the epoch are through

static void fail(const char *what, ...) {
    va_list rest;
    va_start(rest, what);
    fprintf(stderr, "soak: seed %llu, epoch %u (ending %d, %d members): ", (unsigned long long)seed, P.epoch, P.ending, P.size);
    vfprintf(stderr, what, rest);
    fprintf(stderr, "\n");
    exit(1);
}

#define CHECK(what, ...) \
    do { \
        if (!(what)) fail(__VA_ARGS__); \
    } while (0)

static uint64_t mixed(uint64_t z) {
    z += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// A number below `below`, the same for equal questions.
static int draw(int below, const char *what, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t z = mixed(seed ^ mixed(P.epoch));
    for (; *what; what++) z = mixed(z ^ (uint64_t)*what);
    return mixed(mixed(mixed(z ^ a) ^ b) ^ c) % below;
}

static void nap(int most_us) {
    static _Thread_local uint64_t state;
    if (!state) state = mixed(seed ^ (uintptr_t)&state);
    state = mixed(state);
    if (state % 3 == 0) usleep(state / 3 % most_us);
}

// Tokens that a member may bring to a step.
static int room_of(int step, int m) {
    if (!P.source[m]) return 0;
    switch (draw(4, "much", step, m, 0)) {
        case 0: return 0;
        case 1: return draw(MANY, "many", step, m, 0);
        default: return draw(FEW, "few", step, m, 0);
    }
}

static int tokens_of(int step, int layer, int m) {
    int room = room_of(step, m), fewer = draw(3, "fewer", step, layer, m);
    return room > fewer ? room - fewer : room ? draw(2, "one", step, layer, m) : 0;
}

static uint64_t place(int step, int layer, int m) { return ((uint64_t)step * LAYERS + layer) * MOST + m; }
static int x_at(uint64_t place, int token, int i) { return draw(7, "x", place, token, i) - 3; }
static int id_at(uint64_t place, int token, int k) { return draw(EXPERTS + 1, "id", place, token, k) - 1; }
static int weight_at(uint64_t place, int token, int k) { return draw(3, "weight", place, token, k); }

static void *room_for(size_t bytes) {
    void *memory = bytes ? malloc(bytes) : NULL;  // an empty tensor's address is NULL
    CHECK(memory || !bytes, "no memory");
    return memory;
}

static float value(const void *x, size_t i) {
    if (P.element == 4) return ((const float *)x)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}

// A copy of an expert, drawn.
static int slot_for(int id, uint64_t place, int token, int k) {
    if (id < 0) return -1;
    for (int i = 0; i < P.table.replicated; i++)
        if (P.expert[i] == id + 1) {
            int copies = P.start[i + 1] - P.start[i];
            return P.copy_slot[P.start[i] + draw(copies, "copy", place, token, k)];
        }
    return P.lookup[id + 1];
}

typedef struct {
    int16_t *ids;
    int32_t *wide, *slots;
    float *weights, *sums;
    void *x;
} mine;

static void bring(mine *t, int tokens, uint64_t at) {
    size_t pairs = (size_t)tokens * TOP_K, numbers = (size_t)tokens * P.hidden;
    *t = (mine){room_for(2 * pairs), room_for(4 * pairs), room_for(4 * pairs), room_for(4 * pairs), room_for(4 * numbers),
                room_for(P.element * numbers)};
    for (size_t p = 0; p < pairs; p++) {
        t->ids[p] = t->wide[p] = id_at(at, p / TOP_K, p % TOP_K);
        t->weights[p] = weight_at(at, p / TOP_K, p % TOP_K);
        t->slots[p] = slot_for(t->wide[p], at, p / TOP_K, p % TOP_K);
    }
    for (size_t i = 0; i < numbers; i++) {
        float x = x_at(at, i / P.hidden, i % P.hidden);
        if (P.element == 4) ((float *)t->x)[i] = x;
        else ((uint16_t *)t->x)[i] = narrow(x);
    }
}

static void drop(mine *t) { free(t->ids), free(t->wide), free(t->slots), free(t->weights), free(t->sums), free(t->x); }

static void check_sums(const mine *t, int tokens, uint64_t at, int me) {
    for (int token = 0; token < tokens; token++) {
        int factor = 0;
        for (int k = 0; k < TOP_K; k++) factor += weight_at(at, token, k) * (id_at(at, token, k) + 1);
        for (int i = 0; i < P.hidden; i++) {
            float found = t->sums[(size_t)token * P.hidden + i], right = factor * x_at(at, token, i);
            CHECK(found == right, "member %d, token %d: %g, not %g", me, token, found, right);
        }
    }
}

// Every source's ids, which decide nothing here: slots are drawn.
static int ids_of_all(seat *s, int step, int layer, const int32_t *room, const mine *t, int tokens, finding *f) {
    int16_t *everyone[MOST] = {0};
    int32_t counts[MOST] = {0};
    for (int m = 0; m < P.size; m++)
        if (m != s->me) everyone[m] = room_for(2 * (size_t)room[m] * TOP_K);
    everyone[s->me] = t->ids, counts[s->me] = tokens;
    int outcome = tokenyard_links_ids(s->steps, s->traffic, layer, room, counts, everyone, f);
    for (int m = 0; m < P.size; m++) {
        int own = room[m] ? tokens_of(step, layer, m) : 0;
        uint64_t at = place(step, layer, m);
        CHECK(outcome || counts[m] == own, "member %d has %d ids of %d, not %d", s->me, counts[m], m, own);
        for (int p = 0; !outcome && p < own * TOP_K; p++)
            CHECK(everyone[m][p] == id_at(at, p / TOP_K, p % TOP_K), "member %d: an id of %d is wrong", s->me, m);
        if (m != s->me) free(everyone[m]);
    }
    return outcome;
}

// What a holder does in a layer. own: it brings tokens, too; then their sums are in *y from *first on.
static int serve(seat *s, int layer, const int32_t *room, const batch *own, float **y, size_t *first, finding *f) {
    size_t most = 0, rows = 0;
    int32_t counts[MOST] = {0};
    for (int m = 0; m < P.size; m++) most += room[m];
    void *x = room_for(most * P.hidden * P.element);
    int32_t *slots = room_for(4 * most * TOP_K);
    float *weights = room_for(4 * most * TOP_K);
    int outcome = tokenyard_links_collect(s->steps, s->traffic, layer, room, own, x, slots, weights, counts, f);
    for (int m = 0; m < P.size && !outcome; m++) {
        if (m == s->me) *first = rows * P.hidden;
        rows += counts[m];
    }
    *y = outcome ? NULL : room_for(4 * rows * P.hidden);
    for (size_t row = 0; row < rows; row++) {
        int factor = 0, here = 0;
        for (int k = 0; k < TOP_K; k++) {
            int slot = slots[row * TOP_K + k];
            CHECK(slot >= -1 && slot < EXPERTS, "member %d: slot %d", s->me, slot);
            if (slot >= 0) factor += (int)weights[row * TOP_K + k] * (slot + 1), here++;
        }
        CHECK(here, "member %d: a row without an expert here", s->me);
        for (int i = 0; i < P.hidden; i++) (*y)[row * P.hidden + i] = factor * value(x, row * P.hidden + i);
    }
    nap(300);
    if (!outcome) outcome = tokenyard_links_give_back(s->steps, s->traffic, layer, *y, counts, f);
    free(x), free(slots), free(weights);
    return outcome;
}

static int run_layer(seat *s, int step, int layer, const int32_t *room, finding *f) {
    int source = room[s->me] > 0, holder = P.rank[s->me] >= 0, outcome = DONE;
    int tokens = source ? tokens_of(step, layer, s->me) : 0, together = draw(2, "together", step, layer, 0);
    uint64_t at = place(step, layer, s->me);
    float *y = NULL;
    size_t first = 0;
    mine t;
    bring(&t, tokens, at);
    batch b = {t.x, t.wide, t.weights, together ? t.slots : NULL, &P.table, tokens};
    if (source && together) outcome = ids_of_all(s, step, layer, room, &t, tokens, f);
    if (!outcome && source && !holder && draw(2, "ask", step, layer, s->me)) {
        outcome = tokenyard_links_ask(s->steps, s->traffic, layer, &b, t.sums, f);
    } else {
        if (!outcome && source) outcome = tokenyard_links_dispatch(s->steps, s->traffic, layer, &b, f);
        nap(200);
        if (!outcome && holder) outcome = serve(s, layer, room, source ? &b : NULL, &y, &first, f);
        if (!outcome && source) outcome = tokenyard_links_sum(s->steps, s->traffic, layer, y ? y + first : NULL, t.sums, f);
    }
    if (!outcome && source) check_sums(&t, tokens, at, s->me);
    free(y);
    drop(&t);
    return outcome;
}

static int run_step(seat *s, int step, finding *f) {
    int64_t rows[MOST * LINKS_ROW];
    int32_t room[MOST];
    for (int m = 0; m < P.size; m++) room[m] = room_of(step, m);
    for (int i = 0; i < LINKS_ROW; i++) rows[s->me * LINKS_ROW + i] = draw(1 << 30, "row", step, s->me, i);
    int outcome = tokenyard_links_header(s->steps, rows, step, draw(P.size + 1, "leader", step, 0, 0) - 1, links_now() + PATIENCE, f);
    if (outcome) return outcome;
    for (int i = 0; i < P.size * LINKS_ROW; i++)
        CHECK(rows[i] == draw(1 << 30, "row", step, i / LINKS_ROW, i % LINKS_ROW), "member %d: a row is wrong", s->me);
    tokenyard_links_step(s->traffic, step, 7, PATIENCE, draw(MOST, "turn", step, 0, 0), draw(2, "whole", step, 0, 0));
    for (int layer = 0; layer < LAYERS; layer++) {
        nap(200);
        if ((outcome = run_layer(s, step, layer, room, f))) return outcome;
    }
    return DONE;
}

// The circle that an outsider aborts from now on; 0: one was aborted already.
static int go_over(seat *s, circle *c) {
    pthread_mutex_lock(&s->gate);
    int goes = !s->ended;
    s->now = c;
    pthread_mutex_unlock(&s->gate);
    return goes;
}

static void end(seat *s) {
    pthread_mutex_lock(&s->gate);
    s->ended = 1;
    tokenyard_links_abort(s->now);
    pthread_mutex_unlock(&s->gate);
}

static void *member_main(void *seat_of) {
    seat *s = seat_of;
    finding f = {0};
    uint8_t all[MOST] = {0};
    for (int m = 0; m < P.size; m++) all[m] = m != s->me;
    nap(300);
    int outcome = tokenyard_links_meet(s->meeting, all, all, links_now() + PATIENCE, &f);
    if (!outcome && !go_over(s, s->steps)) outcome = OVER;
    while (!outcome && s->done < P.steps) {
        if (draw(3, "idle", s->done, s->me, 0) == 0) tokenyard_links_idle(s->steps, links_now() + 2000000);
        nap(200);
        outcome = run_step(s, s->done, &f);
        if (!outcome) s->done++;
        if (P.ending == BY_ITSELF && s->me == P.victim && s->done > (int)P.at) break;
    }
    CHECK(outcome <= DEAD, "member %d, step %d: outcome %d by member %d, errno %d, in a frame of kind %d of epoch %u",
          s->me, s->done, outcome, f.member, f.error, f.found.kind, f.found.epoch);
    nap(300);
    end(s);  // at once, or with the others still in their last step
    s->outcome = outcome;
    return NULL;
}

static void prepare_and_give_up(seat *s, int number) {
    circle *c = tokenyard_links_circle(s->hub, P.size, s->me, P.epoch + 1 + number, s->peer);
    CHECK(c, "no memory");
    nap(100);
    tokenyard_links_abort(c);
    tokenyard_links_free_circle(c);
}

static void look_at(seat *s) {
    uint8_t *missing = tokenyard_links_missing(s->steps);
    int waits = 0;
    for (int m = 0; m < P.size; m++) waits += __atomic_load_n(&missing[m], __ATOMIC_RELAXED);
    CHECK(waits < P.size, "member %d waits for %d", s->me, waits);
    (void)__atomic_load_n(tokenyard_links_bytes(s->steps), __ATOMIC_RELAXED);
}

static void *outside_main(void *unused) {
    (void)unused;
    int64_t began = links_now();
    int dropped = 0, broken = P.ending == IN_PEACE || P.ending == BY_ITSELF;
    for (uint64_t turn = 0; !__atomic_load_n(&over, __ATOMIC_ACQUIRE); turn++) {
        seat *s = &seats[draw(P.size, "whom", turn, 0, 0)];
        if (draw(4, "wake", turn, 0, 0) == 0) tokenyard_links_wake(s->steps);
        if (dropped < P.drops) prepare_and_give_up(&seats[dropped % P.size], dropped / P.size), dropped++;
        look_at(s);
        if (!broken && links_now() - began >= (int64_t)P.at) {
            broken = 1;
            if (P.ending == FROM_OUTSIDE) end(&seats[P.victim]);
            else if (draw(2, "known", 0, 0, 0)) tokenyard_links_died(seats[P.other].hub, seats[P.other].peer[P.victim]);
            else shutdown(seats[P.victim].fd[P.other], SHUT_RDWR);
        }
        usleep(draw(120, "pause", turn, 0, 0));
    }
    return NULL;
}

static void place_experts(void) {
    int copies = 0;
    P.lookup[0] = -1, P.home[0] = P.holders;
    P.start[0] = P.table.replicated = 0;
    for (int e = 0; e < EXPERTS; e++) {
        int width = 1 + draw(P.holders, "width", e, 0, 0), home = draw(P.holders, "home", e, 0, 0);
        P.home[e + 1] = home, P.lookup[e + 1] = home * EXPERTS + e;
        if (width == 1) continue;
        P.expert[P.table.replicated] = e + 1;
        for (int i = 0; i < width; i++, copies++) {
            P.copy_rank[copies] = (home + i) % P.holders;
            P.copy_slot[copies] = P.copy_rank[copies] * EXPERTS + e;
        }
        P.start[++P.table.replicated] = copies;
    }
    for (int r = 0; r < MOST; r++) P.speed[r] = 1 << 20;
    P.table = (split_table){EXPERTS, P.holders, P.table.replicated, 1, P.lookup, P.home, P.expert, P.start, P.copy_rank,
                            P.copy_slot, P.speed, draw(2, "floor", 0, 0, 0) * 4096, 500, 64};
}

static void make_plan(uint32_t epoch) {
    P.epoch = epoch;
    P.size = 3 + draw(2, "size", 0, 0, 0), P.steps = 1 + draw(STEPS, "steps", 0, 0, 0);
    P.element = draw(2, "element", 0, 0, 0) ? 4 : 2, P.hidden = 1 + draw(HIDDEN, "hidden", 0, 0, 0);
    P.ending = draw(ENDINGS, "ending", 0, 0, 0);
    P.victim = draw(P.size, "victim", 0, 0, 0), P.other = (P.victim + 1 + draw(P.size - 1, "other", 0, 0, 0)) % P.size;
    P.at = P.ending == BY_ITSELF ? draw(P.steps, "step", 0, 0, 0) : draw(6000000, "moment", 0, 0, 0);
    P.drops = draw(2, "drops", 0, 0, 0) ? draw(3 * P.size, "drops of", 0, 0, 0) : 0;
    P.holders = 0;
    for (int m = 0; m < P.size; m++) {
        int role = m == 0 ? 2 : m == 1 ? 1 : draw(3, "role", m, 0, 0);  // a holder and a source at least
        role |= draw(4, "both", m, 0, 0) == 0 ? 3 : 0;
        P.source[m] = role != 2, P.rank[m] = role != 1 ? P.holders : -1;
        if (role != 1) P.member[P.holders++] = m;
    }
    place_experts();
}

// A connection whose buffers fill soon.
static void connect_pair(int kind, int fds[2]) {
    int size = kind & 1 ? 4096 : 32768, on = 1;
    if (kind & 2) {
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "no socket pair");
    } else {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof(at);
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(!bind(listener, (void *)&at, sizeof(at)) && !listen(listener, 1), "no listener");
        CHECK(!getsockname(listener, (void *)&at, &length), "no address");
        fds[0] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(!connect(fds[0], (void *)&at, sizeof(at)) && (fds[1] = accept(listener, NULL, NULL)) >= 0, "no connection");
        close(listener);
    }
    for (int i = 0; i < 2; i++) {
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        if (!(kind & 2)) setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
}

static void unlink_pair(seat *a, seat *b) {
    if (!a->peer[b->me]) return;
    tokenyard_links_free_peer(a->peer[b->me]), tokenyard_links_free_peer(b->peer[a->me]);
    close(a->fd[b->me]), close(b->fd[a->me]);
    a->peer[b->me] = b->peer[a->me] = NULL;
}

// Links that can't go on are made anew, as hubs do.
static int make_links(void) {
    uint64_t most = (uint64_t)MOST * MANY * (8 * TOP_K + 4 * HIDDEN);
    int made = 0;
    for (int m = 0; m < P.size; m++)
        for (int n = 0; n < m; n++) {
            seat *a = &seats[m], *b = &seats[n];
            int fds[2];
            if (a->peer[n] && tokenyard_links_usable(a->hub, a->peer[n], P.epoch) &&
                tokenyard_links_usable(b->hub, b->peer[m], P.epoch))
                continue;
            unlink_pair(a, b);
            connect_pair(draw(4, "pair", m, n, 0), fds);
            a->fd[n] = fds[0], b->fd[m] = fds[1];
            a->peer[n] = tokenyard_links_peer(fds[0], 10 + m, 10 + n, most);
            b->peer[m] = tokenyard_links_peer(fds[1], 10 + n, 10 + m, most);
            CHECK(a->peer[n] && b->peer[m], "no memory");
            made++;
        }
    return made;
}

static void run_epoch(void) {
    pthread_t threads[MOST], outside;
    over = 0;
    for (int m = 0; m < P.size; m++) {
        seat *s = &seats[m];
        peer *peers[MOST];
        memcpy(peers, s->peer, sizeof(peers));
        s->meeting = tokenyard_links_circle(s->hub, P.size, m, P.epoch, peers);
        s->steps = tokenyard_links_circle(s->hub, P.size, m, P.epoch, peers);
        s->traffic = tokenyard_links_traffic(P.hidden, TOP_K, P.element, EXPERTS, EXPERTS, P.size, P.rank, P.member);
        CHECK(s->meeting && s->steps && s->traffic, "no memory");
        s->now = s->meeting, s->ended = s->done = 0;
    }
    for (int m = 0; m < P.size; m++) pthread_create(&threads[m], NULL, member_main, &seats[m]);
    pthread_create(&outside, NULL, outside_main, NULL);
    for (int m = 0; m < P.size; m++) pthread_join(threads[m], NULL);
    __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
    pthread_join(outside, NULL);
    for (int m = 0; m < P.size; m++) {
        seat *s = &seats[m];
        CHECK(P.ending != IN_PEACE || (s->outcome == DONE && s->done == P.steps),
              "member %d has ended with %d after %d of %d steps", m, s->outcome, s->done, P.steps);
        tokenyard_links_free_circle(s->meeting), tokenyard_links_free_circle(s->steps);
        tokenyard_links_free_traffic(s->traffic);
    }
}

int main(int count, char **args) {
    if (count != 4) return 2;
    seed = strtoull(args[1], NULL, 10);
    int64_t until = links_now() + (int64_t)(atof(args[2]) * 1e9);
    long least = atol(args[3]), epochs = 0, steps = 0, links = 0, outcomes[8] = {0};
    for (int m = 0; m < MOST; m++) {
        seats[m].me = m, seats[m].hub = tokenyard_links_hub();
        pthread_mutex_init(&seats[m].gate, NULL);
    }
    for (; epochs < least || links_now() < until; epochs++) {
        make_plan(1 + (uint32_t)epochs * EPOCHS_APART);
        links += make_links();
        run_epoch();
        for (int m = 0; m < P.size; m++) steps += seats[m].done, outcomes[seats[m].outcome]++;
    }
    for (int m = 0; m < MOST; m++)
        for (int n = 0; n < m; n++) unlink_pair(&seats[m], &seats[n]);
    for (int m = 0; m < MOST; m++) tokenyard_links_free_hub(seats[m].hub);
    printf("soak: %ld epochs, %ld steps of members, %ld links, outcomes done %ld, over %ld, left %ld, dead %ld\n", epochs, steps,
           links, outcomes[DONE], outcomes[OVER], outcomes[LEFT], outcomes[DEAD]);
    return 0;
}

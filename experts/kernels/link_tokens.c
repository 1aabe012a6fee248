// One layer's dispatch and combine over links: route tokens to copies of their experts, pack, send, wait, check, unpack, sum.
//
// A body of ROWS: slots [n, K] int32, weights [n, K] float32, x [n, H]. One of SUMS: sums [n, H] in the activations' dtype.
// Each rank sums in float32 and rounds once; sources sum in float32, in the order of members, so that equal inputs give
// equal bits. What a peer says is checked on a copy, or read once.
// Letters: T own tokens, n rows of a frame, H hidden, K top-k.

#include "links.h"
#include "split.h"

#include <stdlib.h>
#include <string.h>

// What a circle's tokens look like, and where the rows of the layer under way went.
typedef struct {
    int32_t hidden, top_k, element, slots;  // element: bytes of an activation, 4 = float32, 2 = bfloat16; slots: of a rank
    int32_t experts;                        // logical ones of a layer
    const int32_t *rank;                    // [size] of each member, -1 without experts
    const int32_t *member;                  // [ranks] of each rank, -1 without one
    uint64_t step;                          // the one under way, with its placement version
    int64_t patience;                       // ns, of every wait
    uint32_t version;
    int32_t turn, whole;                    // of the split; whole: every expert goes to its home slot
    int32_t tokens, room;                   // T of the layer under way, and for how many there is memory
    int16_t *ids;                           // [room, K]
    int32_t *chosen;                        // [room, K] slot over all ranks, -1 = none
    int32_t *rows;                          // [size, room] tokens that go to each member, rising
    int32_t *count;                         // [size] how many
} traffic;

// A source's tokens of a layer. slots: [T, K] over all ranks, NULL = split by `table`.
typedef struct {
    const void *x;         // [T, H]
    const int32_t *ids;    // [T, K] logical experts, -1 = none
    const float *weights;  // [T, K]
    const int32_t *slots;
    const split_table *table;
    int32_t tokens;
} batch;

traffic *tokenyard_links_traffic(int32_t hidden, int32_t top_k, int32_t element, int32_t slots, int32_t experts,
                                 int32_t size, const int32_t *rank, const int32_t *member) {
    traffic *t = calloc(1, sizeof(traffic));
    if (!t) return NULL;
    t->hidden = hidden, t->top_k = top_k, t->element = element, t->slots = slots, t->experts = experts;
    t->rank = rank, t->member = member;
    t->count = calloc(size, sizeof(int32_t));
    if (t->count) return t;
    free(t);
    return NULL;
}

void tokenyard_links_free_traffic(traffic *t) {
    free(t->ids), free(t->chosen), free(t->rows), free(t->count), free(t);
}

// What the calls of the next layers are of. patience: ns.
void tokenyard_links_step(traffic *t, uint64_t step, uint32_t version, int64_t patience, int32_t turn, int32_t whole) {
    t->step = step, t->version = version, t->patience = patience, t->turn = turn, t->whole = whole;
}

static moment at_layer(const traffic *t, int layer, int kind) {
    return (moment){.step = t->step, .version = t->version, .until = links_now() + t->patience, .layer = layer, .kind = kind};
}

static int make_room(traffic *t, int size, int tokens) {
    if (tokens <= t->room) return 1;
    free(t->ids), free(t->chosen), free(t->rows);
    size_t pairs = (size_t)tokens * t->top_k;
    t->ids = malloc(pairs * sizeof(int16_t));
    t->chosen = malloc(pairs * sizeof(int32_t));
    t->rows = malloc((size_t)tokens * size * sizeof(int32_t));
    t->room = t->ids && t->chosen && t->rows ? tokens : 0;
    return t->room > 0;
}

static inline uint64_t row_bytes(const traffic *t) { return (uint64_t)t->hidden * t->element; }
static inline uint64_t dispatch_bytes(const traffic *t) { return 8ull * t->top_k + row_bytes(t); }

static void choose(traffic *t, const batch *b) {
    size_t pairs = (size_t)b->tokens * t->top_k;
    if (b->slots) {
        memcpy(t->chosen, b->slots, pairs * sizeof(int32_t));
    } else if (t->whole) {
        for (size_t p = 0; p < pairs; p++) t->chosen[p] = b->table->lookup[b->ids[p] + 1];
    } else {
        for (size_t p = 0; p < pairs; p++) t->ids[p] = (int16_t)b->ids[p];
        tokenyard_split(b->table, t->ids, pairs, t->turn, t->chosen);
    }
}

// Which tokens go to which member, each at most once to each.
static void address(traffic *t, int size) {
    int32_t last[size];
    memset(last, -1, sizeof(last));
    memset(t->count, 0, size * sizeof(int32_t));
    for (int32_t token = 0; token < t->tokens; token++)
        for (int k = 0; k < t->top_k; k++) {
            int32_t slot = t->chosen[(size_t)token * t->top_k + k];
            if (slot < 0) continue;
            int32_t m = t->member[slot / t->slots];
            if (last[m] == token) continue;
            last[m] = token;
            t->rows[(size_t)m * t->room + t->count[m]++] = token;
        }
}

// Copies the rows that go to member m, with their slots there.
static void pack(const traffic *t, const batch *b, int m, int32_t *slots, float *weights, uint8_t *x) {
    const int32_t *rows = t->rows + (size_t)m * t->room, first = t->rank[m] * t->slots;
    size_t bytes = row_bytes(t), k = t->top_k;
    for (int32_t i = 0; i < t->count[m]; i++) {
        for (size_t j = 0; j < k; j++) {
            int32_t slot = t->chosen[rows[i] * k + j] - first;
            slots[i * k + j] = slot >= 0 && slot < t->slots ? slot : -1;
        }
        memcpy(weights + i * k, b->weights + rows[i] * k, k * sizeof(float));
        memcpy(x + i * bytes, (const uint8_t *)b->x + rows[i] * bytes, bytes);
    }
}

// Queues for each member with experts the rows that are for it, which may be none, and sends what it can at once. With the lock.
static int send_rows(circle *c, traffic *t, int layer, const batch *b) {
    moment at = at_layer(t, layer, ROWS);
    if (!make_room(t, c->size, b->tokens)) return NO_MEMORY;
    t->tokens = b->tokens;
    choose(t, b);
    address(t, c->size);
    for (int m = 0; m < c->size; m++) {
        if (t->rank[m] < 0 || m == c->me) continue;
        size_t n = t->count[m], pairs = n * t->top_k;
        uint8_t *body = links_frame(c, m, &at, n, n * dispatch_bytes(t));
        if (!body) return NO_MEMORY;
        pack(t, b, m, (int32_t *)body, (float *)(body + 4 * pairs), body + 8 * pairs);
        links_flush(c->peer[m]);
    }
    return DONE;
}

// Sends each member with experts the rows that are for it.
int tokenyard_links_dispatch(circle *c, traffic *t, int32_t layer, const batch *b, finding *f) {
    moment at = at_layer(t, layer, ROWS);
    uint8_t from[c->size];
    memset(from, 0, c->size);
    int outcome = links_enter(c, f);
    if (!outcome) outcome = send_rows(c, t, layer, b);
    if (!outcome) outcome = links_run(c, from, &at, f);
    return links_leave(c, outcome);
}

static int takes_slots(const traffic *t, const int32_t *from, size_t pairs, int32_t *to) {
    memcpy(to, from, pairs * sizeof(int32_t));
    for (size_t p = 0; p < pairs; p++)
        if (to[p] < -1 || to[p] >= t->slots) return 0;
    return 1;
}

// Waits for the rows of every source and copies them together, in the order of members, this one's own among them.
// room: [size] tokens of each member, 0 = it is no source. counts: [size] gets the rows of each. own: this member's
// tokens, which its `dispatch` has routed, NULL where it brings none.
int tokenyard_links_collect(circle *c, traffic *t, int32_t layer, const int32_t *room, const batch *own, uint8_t *x,
                            int32_t *slots, float *weights, int32_t *counts, finding *f) {
    moment at = at_layer(t, layer, ROWS);
    uint8_t from[c->size];
    for (int m = 0; m < c->size; m++) from[m] = room[m] > 0 && m != c->me;
    size_t bytes = row_bytes(t), k = t->top_k, done = 0;
    int outcome = links_enter(c, f);
    if (!outcome) outcome = links_run(c, from, &at, f);
    for (int m = 0; m < c->size && !outcome; m++) {
        counts[m] = 0;
        if (m == c->me && own) {
            counts[m] = t->count[m];
            pack(t, own, m, slots + done * k, weights + done * k, x + done * bytes);
        } else if (from[m]) {
            peer *p = c->peer[m];
            size_t n = p->head.rows, pairs = n * k;
            if (!links_fits(p, &at) || n > (size_t)room[m] || p->head.bytes != n * dispatch_bytes(t) ||
                !takes_slots(t, (int32_t *)p->body, pairs, slots + done * k)) {
                outcome = links_fail(f, ASTRAY, m, 0, &p->head);
                break;
            }
            memcpy(weights + done * k, p->body + 4 * pairs, 4 * pairs);
            memcpy(x + done * bytes, p->body + 8 * pairs, n * bytes);
            counts[m] = n;
            links_drop(p);
        }
        done += counts[m];
    }
    return links_leave(c, outcome);
}

static inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Sends each source the sums of its rows, where it has any. y: [N, H] float32 in the order that `collect` gave.
int tokenyard_links_give_back(circle *c, traffic *t, int32_t layer, const float *y, const int32_t *counts, finding *f) {
    moment at = at_layer(t, layer, SUMS);
    uint8_t from[c->size];
    memset(from, 0, c->size);
    int outcome = links_enter(c, f);
    for (int m = 0; m < c->size && !outcome; m++) {
        size_t numbers = (size_t)counts[m] * t->hidden;
        if (m != c->me && numbers) {
            uint8_t *body = links_frame(c, m, &at, counts[m], numbers * t->element);
            if (!body) {
                outcome = NO_MEMORY;
                break;
            }
            uint16_t *narrowed = (uint16_t *)body;
            if (t->element == 4)
                memcpy(body, y, numbers * sizeof(float));
            else
                for (size_t i = 0; i < numbers; i++) narrowed[i] = narrow(y[i]);
            links_flush(c->peer[m]);
        }
        y += numbers;
    }
    if (!outcome) outcome = links_run(c, from, &at, f);
    return links_leave(c, outcome);
}

// The first part of a sum is added to 0, which nobody has to write before.
static inline void add_narrow(float *restrict sum, const uint16_t *restrict part, size_t count, int first) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)part[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof(value));
        sum[i] = (first ? 0.0f : sum[i]) + value;
    }
}

static inline void add(float *restrict sum, const float *restrict part, size_t count, int first) {
    for (size_t i = 0; i < count; i++) sum[i] = (first ? 0.0f : sum[i]) + part[i];
}

// Waits for what was sent to be answered and adds it up. With the lock.
static int receive_sums(circle *c, traffic *t, int layer, const float *own, float *sums, finding *f) {
    moment at = at_layer(t, layer, SUMS);
    uint8_t from[c->size];
    size_t hidden = t->hidden;
    for (int m = 0; m < c->size; m++) from[m] = m != c->me && t->tokens > 0 && t->count[m] > 0;
    int outcome = links_run(c, from, &at, f);
    uint8_t begun[t->tokens + 1];
    memset(begun, 0, sizeof(begun));
    for (int m = 0; m < c->size && t->tokens > 0 && !outcome; m++) {
        const int32_t *rows = t->rows + (size_t)m * t->room;
        size_t n = t->count[m];
        peer *p = c->peer[m];
        if (m != c->me && !from[m]) continue;
        if (from[m] && (!links_fits(p, &at) || p->head.rows != n || p->head.bytes != n * row_bytes(t))) {
            outcome = links_fail(f, ASTRAY, m, 0, &p->head);
            break;
        }
        for (size_t i = 0; i < n; i++) {
            float *sum = sums + rows[i] * hidden;
            if (m == c->me)
                add(sum, own + i * hidden, hidden, !begun[rows[i]]);
            else if (t->element == 4)
                add(sum, (const float *)p->body + i * hidden, hidden, !begun[rows[i]]);
            else
                add_narrow(sum, (const uint16_t *)p->body + i * hidden, hidden, !begun[rows[i]]);
            begun[rows[i]] = 1;
        }
        if (from[m]) links_drop(p);
    }
    for (int32_t token = 0; token < t->tokens && !outcome; token++)
        if (!begun[token]) memset(sums + token * hidden, 0, hidden * sizeof(float));
    return outcome;
}

// Waits for what `dispatch` asked for and adds it up. own: [n, H] float32 of this member's own experts. sums: [T, H].
int tokenyard_links_sum(circle *c, traffic *t, int32_t layer, const float *own, float *sums, finding *f) {
    int outcome = links_enter(c, f);
    if (!outcome) outcome = receive_sums(c, t, layer, own, sums, f);
    return links_leave(c, outcome);
}

// `dispatch` and `sum` of a member that holds no experts.
int tokenyard_links_ask(circle *c, traffic *t, int32_t layer, const batch *b, float *sums, finding *f) {
    int outcome = links_enter(c, f);
    if (!outcome) outcome = send_rows(c, t, layer, b);
    if (!outcome) outcome = receive_sums(c, t, layer, NULL, sums, f);
    return links_leave(c, outcome);
}

static int takes_ids(const traffic *t, const void *from, size_t pairs, int16_t *to) {
    memcpy(to, from, pairs * sizeof(int16_t));
    for (size_t p = 0; p < pairs; p++)
        if (to[p] < -1 || to[p] >= t->experts) return 0;
    return 1;
}

// Brings every source the top-k ids of all. room: [size] most tokens of each member, 0 = it is no source; counts: [size]
// gets how many it has, of which this one has its own. ids: per member [room, K] int16, of which this one has its own.
int tokenyard_links_ids(circle *c, traffic *t, int32_t layer, const int32_t *room, int32_t *counts, int16_t **ids,
                        finding *f) {
    moment at = at_layer(t, layer, IDS);
    uint8_t from[c->size];
    int outcome = links_enter(c, f);
    size_t each = t->top_k * sizeof(int16_t), mine = counts[c->me] * each;
    for (int m = 0; m < c->size && !outcome; m++) {
        from[m] = room[m] > 0 && m != c->me;
        if (!from[m]) continue;
        uint8_t *body = links_frame(c, m, &at, counts[c->me], mine);
        if (!body) {
            outcome = NO_MEMORY;
            break;
        }
        if (mine) memcpy(body, ids[c->me], mine);
        links_flush(c->peer[m]);
    }
    if (!outcome) outcome = links_run(c, from, &at, f);
    for (int m = 0; m < c->size && !outcome; m++) {
        if (!from[m]) continue;
        peer *p = c->peer[m];
        uint32_t n = p->head.rows;
        if (!links_fits(p, &at) || n > (uint32_t)room[m] || p->head.bytes != n * each ||
            !takes_ids(t, p->body, (size_t)n * t->top_k, ids[m])) {
            outcome = links_fail(f, ASTRAY, m, 0, &p->head);
        } else {
            counts[m] = n;
            links_drop(p);
        }
    }
    return links_leave(c, outcome);
}

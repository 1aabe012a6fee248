// The planner's inner loops for one layer: a full greedy layout, and few moves that earn their price.
//
// A layout is judged by the split that will be used on it: the slowest rank under water-filling (waterfill.h), meant
// over rows of loads seen lately. What slows a row down is a closed set of ranks whose tokens can't leave it. A good
// move gives one expert of that set a copy outside: copies connect ranks rather than level loads.
// Slots are numbered over all ranks; a slot holds an expert, EMPTY or ABSENT.

#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "waterfill.h"

#define EMPTY (-1)
#define ABSENT (-2)
#define MAX_TRIED 64
#ifndef MAX_PAIRS
#define MAX_PAIRS 24
#endif

typedef struct {
    int32_t experts, ranks, slots_per_rank, rows;
    const double *load;    // [rows, experts] tokens
    const double *weight;  // [rows], adding up to 1
    const double *pace;    // [ranks], 1 / relative speed; 0: a dead rank
    const int32_t *domain; // [ranks] failure domain whose ranks share no expert while there is a choice, or NULL
    double price;          // gain in slowest-rank tokens that a move must bring
    int32_t max_moves;
    int32_t tried;         // candidates solved in full per move
    int64_t nanoseconds;   // stop looking for moves after this
} problem;

typedef struct {
    const problem *p;
    int slots;
    int16_t *held;      // [slots]
    int *copies;        // [experts]
    int *where;         // [experts, ranks] slots of each expert
    int *replicated;    // [experts] experts with several copies
    int replicated_count;
    double *time;       // [rows, ranks]
    double *share;      // [rows, slots]
    double *slowest;    // [rows]
    double *least;      // [rows] no division is quicker
    double *norm;       // [rows] 16-norm of the rank times
    uint64_t *set;      // [rows, words]
    double *try_time;   // [ranks]
    double *try_share;  // [slots]
    int words;
} state;

typedef struct { int slot, expert; } change;
typedef struct { double promise; int count; change change[2]; } candidate;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int rank_of(const state *s, int slot) { return slot / s->p->slots_per_rank; }
static double pace_of(const state *s, int rank) { return s->p->pace[rank]; }

static void index_copies(state *s) {
    memset(s->copies, 0, sizeof(int) * s->p->experts);
    for (int k = 0; k < s->slots; k++)
        if (s->held[k] >= 0 && pace_of(s, rank_of(s, k)) > 0)
            s->where[s->held[k] * s->p->ranks + s->copies[s->held[k]]++] = k;
    s->replicated_count = 0;
    for (int e = 0; e < s->p->experts; e++)
        if (s->copies[e] > 1) s->replicated[s->replicated_count++] = e;
}

static void pour(const state *s, int e, double n, double *time, double *share) {
    const int *slot = s->where + e * s->p->ranks;
    int width = s->copies[e];
    uint16_t rank[WF_RANKS];
    double part[WF_RANKS];
    for (int i = 0; i < width; i++) {
        rank[i] = (uint16_t)rank_of(s, slot[i]);
        time[rank[i]] -= share[slot[i]] * pace_of(s, rank[i]);
    }
    wf_pour(time, rank, width, s->p->pace, n, part);
    for (int i = 0; i < width; i++) share[slot[i]] = part[i];
}

static void sweep(const state *s, const double *load, double *time, double *share) {
    for (int i = 0; i < s->replicated_count; i++) pour(s, s->replicated[i], load[s->replicated[i]], time, share);
}

// The closed set of ranks around the slowest one, and the time below which no division gets it.
static double closed_set(const state *s, const double *time, const double *share, uint64_t *set) {
    int grew = 1, ranks = s->p->ranks;
    double most = wf_slowest(time, ranks);
    memset(set, 0, 8 * s->words);
    for (int r = 0; r < ranks; r++)
        if (time[r] >= most * (1 - 1e-4)) set[r >> 6] |= 1ull << (r & 63);
    while (grew) {
        grew = 0;
        for (int i = 0; i < s->replicated_count; i++) {
            int e = s->replicated[i], inside = 0, outside = 0;
            const int *slot = s->where + e * ranks;
            for (int c = 0; c < s->copies[e]; c++) {
                int r = rank_of(s, slot[c]), in = (set[r >> 6] >> (r & 63)) & 1;
                inside |= in && share[slot[c]] > 1e-6;
                outside |= !in;
            }
            if (!inside || !outside) continue;
            for (int c = 0; c < s->copies[e]; c++) {
                int r = rank_of(s, slot[c]);
                set[r >> 6] |= 1ull << (r & 63);
            }
            grew = 1;
        }
    }
    double work = 0, speed = 0;
    for (int r = 0; r < ranks; r++)
        if ((set[r >> 6] >> (r & 63)) & 1) {
            work += time[r] / pace_of(s, r);
            speed += 1 / pace_of(s, r);
        }
    return work / speed;
}

// What the search lowers: the 16-norm of the rank times, near the slowest one, but it also sees the second slowest, so
// that moves which pay only together are found one by one.
static double norm16(const double *time, const problem *p) {
    double most = wf_slowest(time, p->ranks), sum = 0, alive = 0;
    if (most <= 0) return 0;
    for (int r = 0; r < p->ranks; r++) {
        double t = time[r] / most;
        t *= t, t *= t, t *= t, t *= t;
        sum += t;
        alive += p->pace[r] > 0;
    }
    return most * sqrt(sqrt(sqrt(sqrt(sum / alive))));
}

static void settle(const state *s, int row, int sweeps) {
    double *time = s->time + row * s->p->ranks, *share = s->share + row * s->slots;
    const double *load = s->p->load + row * s->p->experts;
    for (int done = 0; done < sweeps; done += 2) {
        sweep(s, load, time, share);
        sweep(s, load, time, share);
        s->slowest[row] = wf_slowest(time, s->p->ranks);
        s->norm[row] = norm16(time, s->p);
        s->least[row] = closed_set(s, time, share, s->set + row * s->words);
        if (s->slowest[row] - s->least[row] < 2e-3 * s->slowest[row]) break;
    }
}

// Time and shares of a row from nothing.
static void start_row(const state *s, int row) {
    double *time = s->time + row * s->p->ranks, *share = s->share + row * s->slots;
    const double *load = s->p->load + row * s->p->experts;
    memset(time, 0, sizeof(double) * s->p->ranks);
    memset(share, 0, sizeof(double) * s->slots);
    for (int e = 0; e < s->p->experts; e++)
        if (s->copies[e] == 1) {
            int slot = s->where[e * s->p->ranks];
            share[slot] = load[e];
            time[rank_of(s, slot)] += load[e] * pace_of(s, rank_of(s, slot));
        }
    settle(s, row, 24);
}

static double score(const state *s) {
    double sum = 0;
    for (int w = 0; w < s->p->rows; w++) sum += s->p->weight[w] * s->slowest[w];
    return sum;
}

static void drop_copy(state *s, int e, int slot) {
    int *list = s->where + e * s->p->ranks, n = s->copies[e], i = 0;
    while (list[i] != slot) i++;
    list[i] = list[n - 1];
    s->copies[e] = n - 1;
    if (n - 1 == 1)
        for (int j = 0; j < s->replicated_count; j++)
            if (s->replicated[j] == e) {
                s->replicated[j] = s->replicated[--s->replicated_count];
                break;
            }
}

static void add_copy(state *s, int e, int slot) {
    s->where[e * s->p->ranks + s->copies[e]++] = slot;
    if (s->copies[e] == 2) s->replicated[s->replicated_count++] = e;
}

static void put(state *s, int slot, int expert) {
    int old = s->held[slot];
    s->held[slot] = (int16_t)expert;
    if (expert >= 0) add_copy(s, expert, slot);
    if (old >= 0) drop_copy(s, old, slot);
}

// One row after a change of slots: shares of what left go to the other copies, then a few sweeps.
static void apply_row(const state *s, const candidate *c, const int *old, const double *load, double *time, double *share,
                      int sweeps) {
    for (int i = 0; i < c->count; i++) {
        int slot = c->change[i].slot;
        time[rank_of(s, slot)] -= share[slot] * pace_of(s, rank_of(s, slot));
        share[slot] = 0;
    }
    for (int i = 0; i < c->count; i++) {
        if (old[i] >= 0) pour(s, old[i], load[old[i]], time, share);
        pour(s, c->change[i].expert, load[c->change[i].expert], time, share);
    }
    for (int i = 0; i < sweeps; i++) sweep(s, load, time, share);
}

static void apply(state *s, const candidate *c, int *old) {
    for (int i = 0; i < c->count; i++) {
        old[i] = s->held[c->change[i].slot];
        put(s, c->change[i].slot, c->change[i].expert);
    }
}

static void undo(state *s, const candidate *c, const int *old) {
    for (int i = c->count - 1; i >= 0; i--) put(s, c->change[i].slot, old[i]);
}

// What one row gains by a change that is applied to the index already.
static double row_gain(const state *s, const candidate *c, const int *old, int w, int sweeps) {
    const problem *p = s->p;
    memcpy(s->try_time, s->time + w * p->ranks, sizeof(double) * p->ranks);
    memcpy(s->try_share, s->share + w * s->slots, sizeof(double) * s->slots);
    apply_row(s, c, old, p->load + w * p->experts, s->try_time, s->try_share, sweeps);
    return s->norm[w] - norm16(s->try_time, p);
}

// A first look at a change: on the mean of all rows (the last one) and on the row that is worst off.
static double scout(state *s, const candidate *c, int worst) {
    int old[2];
    apply(s, c, old);
    double gain = row_gain(s, c, old, s->p->rows - 1, 2) + 0.5 * row_gain(s, c, old, worst, 2);
    undo(s, c, old);
    return gain;
}

// Mean gain of a change, in slowest-rank tokens. Gives up once it can't reach `wanted`.
static double gain_of(state *s, const candidate *c, double wanted, const double *hope) {
    int old[2];
    const problem *p = s->p;
    double gain = 0, left = 0;
    for (int w = 0; w < p->rows; w++) left += hope[w];
    apply(s, c, old);
    for (int w = 0; w < p->rows - 1 && gain + left > wanted; w++) {
        gain += p->weight[w] * row_gain(s, c, old, w, 3);
        left -= hope[w];
    }
    if (gain + left <= wanted) gain = -1;
    undo(s, c, old);
    return gain;
}

static int holds(const state *s, int e, int rank) {
    for (int c = 0; c < s->copies[e]; c++)
        if (rank_of(s, s->where[e * s->p->ranks + c]) == rank) return 1;
    return 0;
}

static void keep_best(candidate *best, int *count, int room, const candidate *one) {
    int i = *count;
    if (i == room) {
        if (best[room - 1].promise >= one->promise) return;
        i = room - 1;
    } else {
        (*count)++;
    }
    for (; i > 0 && best[i - 1].promise < one->promise; i--) best[i] = best[i - 1];
    best[i] = *one;
}

// promise[e, r]: about what a copy of e on r would bring, were its slot free, over all rows. First order: the flow
// that levels both sides, times how much the objective feels each.
static void promises(const state *s, double *promise) {
    const problem *p = s->p;
    int E = p->experts, R = p->ranks;
    memset(promise, 0, sizeof(double) * E * R);
    for (int w = 0; w < p->rows; w++) {
        const double *time = s->time + w * R, *load = p->load + w * E;
        double feel[WF_RANKS], size[WF_RANKS];
        for (int r = 0; r < R; r++) {
            double t = time[r] / s->norm[w], t2 = t * t, t4 = t2 * t2, t8 = t4 * t4;
            feel[r] = p->weight[w] * t8 * t4 * t2 * t / R;
            size[r] = 0;
            for (int q = 0; q < R; q++) size[r] += fabs(time[q] - time[r]) < 2e-3 * time[r];
        }
        for (int e = 0; e < E; e++) {
            if (!s->copies[e]) continue;
            int from = rank_of(s, s->where[e * R]);
            for (int c = 1; c < s->copies[e]; c++) {
                int r = rank_of(s, s->where[e * R + c]);
                if (time[r] < time[from]) from = r;
            }
            for (int r = 0; r < R; r++) {
                double gap = time[from] - time[r];
                if (gap <= 0 || p->pace[r] <= 0) continue;
                double flow = gap / (p->pace[from] / size[from] + p->pace[r] / size[r]), half = 0.5;
                if (flow > load[e]) flow = load[e], half = 0.8;
                promise[e * R + r] += half * flow * (feel[from] * p->pace[from] - feel[r] * p->pace[r]);
            }
        }
    }
}

// How much a slot's copy carries, weighted by how busy its other copies are: what losing it may cost.
static double carried(const state *s, int slot) {
    double sum = 0;
    for (int w = 0; w < s->p->rows; w++) sum += s->p->weight[w] * s->share[w * s->slots + slot];
    return sum;
}

static int list_candidates(state *s, const double *promise, int worst, candidate *best, int room) {
    const problem *p = s->p;
    int E = p->experts, R = p->ranks, S = p->slots_per_rank, count = 0, pairs = 0;
    candidate pair[MAX_PAIRS];
    for (int e = 0; e < E; e++)
        for (int r = 0; r < R; r++) {
            double v = promise[e * R + r];
            if (v <= p->price || (pairs == MAX_PAIRS && v <= pair[MAX_PAIRS - 1].promise) || holds(s, e, r)) continue;
            keep_best(pair, &pairs, MAX_PAIRS, &(candidate){v, 1, {{r, e}, {0, 0}}});
        }
    for (int i = 0; i < pairs; i++) {
        int r = pair[i].change[0].slot, e = pair[i].change[0].expert;
        for (int slot = r * S; slot < r * S + S; slot++) {
            int f = s->held[slot];
            if (f == ABSENT) continue;
            if (f == EMPTY || s->copies[f] > 1) {
                candidate c = {0, 1, {{slot, e}, {0, 0}}};
                c.promise = scout(s, &c, worst) - p->price;
                if (c.promise > 0) keep_best(best, &count, room, &c);
            }
            for (int k = 0; k < s->copies[e]; k++) {  // exchange the contents of two slots
                int from = s->where[e * R + k];
                if (f == EMPTY || holds(s, f, rank_of(s, from)) || carried(s, slot) >= carried(s, from)) continue;
                candidate c = {0, 2, {{slot, e}, {from, f}}};
                c.promise = scout(s, &c, worst) - 2 * p->price;
                if (c.promise > 0) keep_best(best, &count, room, &c);
            }
        }
    }
    return count;
}

static int improve(state *s, int max_moves, int64_t until, double *promise) {
    const problem *p = s->p;
    int moves = 0, room = p->tried < MAX_TRIED ? p->tried : MAX_TRIED;
    double hope[256];
    while (moves < max_moves) {
        int worst = 0;
        for (int w = 0; w < p->rows; w++) {
            double work = 0, speed = 0;
            for (int r = 0; r < p->ranks; r++)
                if (p->pace[r] > 0) work += s->time[w * p->ranks + r] / p->pace[r], speed += 1 / p->pace[r];
            hope[w] = p->weight[w] * (s->norm[w] - work / speed);
            if (hope[w] > hope[worst]) worst = w;
        }
        promises(s, promise);
        candidate list[MAX_TRIED];
        int count = list_candidates(s, promise, worst, list, room), best = -1;
        double best_gain = 0;
        for (int i = 0; i < count; i++) {
            if (moves + list[i].count > max_moves) continue;
            double gain = gain_of(s, &list[i], best_gain + p->price * list[i].count, hope) - p->price * list[i].count;
            if (gain > best_gain) best_gain = gain, best = i;
            if (now() > until) break;
        }
        if (best < 0) break;
        int old[2];
        apply(s, &list[best], old);
        for (int w = 0; w < p->rows; w++) {
            apply_row(s, &list[best], old, p->load + w * p->experts, s->time + w * p->ranks, s->share + w * s->slots, 2);
            settle(s, w, 12);
        }
        moves += list[best].count;
        if (now() > until) break;
    }
    return moves;
}

static void close_state(state *s) {
    free(s->copies), free(s->where), free(s->replicated), free(s->time), free(s->share), free(s->slowest);
    free(s->least), free(s->norm), free(s->set), free(s->try_time), free(s->try_share);
}

// Every row solved on a layout; 0 without memory.
static int open_state(state *s, const problem *p, int16_t *held) {
    int E = p->experts, R = p->ranks, W = p->rows, words = (R + 63) / 64, slots = R * p->slots_per_rank;
    *s = (state){.p = p, .slots = slots, .held = held, .words = words};
    s->copies = malloc(sizeof(int) * E);
    s->where = malloc(sizeof(int) * E * R);
    s->replicated = malloc(sizeof(int) * E);
    s->time = malloc(sizeof(double) * W * R);
    s->share = malloc(sizeof(double) * W * slots);
    s->slowest = malloc(sizeof(double) * W);
    s->least = malloc(sizeof(double) * W);
    s->norm = malloc(sizeof(double) * W);
    s->set = malloc(8 * W * words);
    s->try_time = malloc(sizeof(double) * R);
    s->try_share = malloc(sizeof(double) * slots);
    if (!s->copies || !s->where || !s->replicated || !s->time || !s->share || !s->slowest || !s->least || !s->norm || !s->set ||
        !s->try_time || !s->try_share) {
        close_state(s);
        return 0;
    }
    index_copies(s);
    for (int w = 0; w < W; w++) start_row(s, w);
    return 1;
}

// Improve `held` [slots] in place. scores: [2] mean slowest rank before and after, in tokens. Returns the moves made,
// -1 without memory.
int ty_improve(const problem *p, int16_t *held, double *scores) {
    int64_t until = now() + p->nanoseconds;
    state s;
    double *promise = malloc(sizeof(double) * p->experts * p->ranks);
    if (!promise || !open_state(&s, p, held)) {
        free(promise);
        return -1;
    }
    scores[0] = score(&s);
    int moves = improve(&s, p->max_moves, until, promise);
    scores[1] = score(&s);
    close_state(&s);
    free(promise);
    return moves;
}

// The rank times of every row under the split. time: [rows, ranks]. Returns 0, -1 without memory.
int ty_times(const problem *p, int16_t *held, double *time) {
    state s;
    if (!open_state(&s, p, held)) return -1;
    memcpy(time, s.time, sizeof(double) * p->rows * p->ranks);
    close_state(&s);
    return 0;
}

typedef struct { double load; int expert; } item;

static int heavier(const void *a, const void *b) {
    const item *x = a, *y = b;
    return x->load < y->load ? 1 : x->load > y->load ? -1 : x->expert - y->expert;
}

// The expert with the most tokens per copy, next, from a heap of (tokens per copy, expert).
static void sink(item *heap, int n, int i) {
    for (;;) {
        int most = i, a = 2 * i + 1, b = a + 1;
        if (a < n && heavier(&heap[a], &heap[most]) < 0) most = a;
        if (b < n && heavier(&heap[b], &heap[most]) < 0) most = b;
        if (most == i) return;
        item t = heap[i];
        heap[i] = heap[most];
        heap[most] = t;
        i = most;
    }
}

// A full layout: copies where tokens per copy are most, then the heaviest copy onto the rank that is least busy, has
// room and no copy of it (nor a rank of its domain, while there is a choice). load: [experts]. Slots that are not
// ABSENT are filled. Returns 0, or -1 when some expert found no slot or memory ran out.
int ty_full(const problem *p, int16_t *held) {
    int E = p->experts, R = p->ranks, S = p->slots_per_rank, room = 0, alive = 0;
    int *free_slots = calloc(R, sizeof(int)), *copies = malloc(sizeof(int) * E), done = -1, made = 0;
    double *time = calloc(R, sizeof(double));
    item *heap = malloc(sizeof(item) * E), *copy = NULL;
    for (int r = 0; r < R && free_slots; r++) {
        for (int k = r * S; k < r * S + S; k++) {
            if (held[k] != ABSENT) held[k] = EMPTY;
            free_slots[r] += held[k] == EMPTY && p->pace[r] > 0;
        }
        room += free_slots[r];
        alive += free_slots[r] > 0;
    }
    copy = malloc(sizeof(item) * (room > 0 ? room : 1));
    if (!free_slots || !copies || !time || !heap || !copy || room < E) goto out;
    for (int e = 0; e < E; e++) heap[e] = (item){p->load[e], e}, copies[e] = 1;
    for (int i = E / 2 - 1; i >= 0; i--) sink(heap, E, i);
    int left = room - E, size = E;
    while (left > 0 && size > 0) {
        int e = heap[0].expert;
        if (copies[e] >= alive) {  // one more would sit beside another
            heap[0] = heap[--size];
        } else {
            copies[e]++, left--;
            heap[0].load = p->load[e] / copies[e];
        }
        sink(heap, size, 0);
    }
    for (int e = 0; e < E; e++)
        for (int c = 0; c < copies[e]; c++) copy[made++] = (item){p->load[e] / copies[e], e};
    qsort(copy, made, sizeof(item), heavier);
    done = 0;
    for (int i = 0; i < made; i++) {
        int e = copy[i].expert, best = -1, best_class = 3;
        for (int r = 0; r < R; r++) {
            if (!free_slots[r]) continue;
            int class = 0;
            for (int k = r * S; k < r * S + S && class < 2; k++) class = held[k] == e ? 2 : 0;
            if (!class && p->domain)
                for (int q = 0; q < R && !class; q++)
                    if (q != r && p->domain[q] == p->domain[r])
                        for (int k = q * S; k < q * S + S && !class; k++) class = held[k] == e;
            if (class < best_class || (class == best_class && time[r] < time[best])) best = r, best_class = class;
        }
        if (best < 0 || (best_class == 2 && copies[e] > 1 && i > 0 && 0)) continue;
        if (best_class == 2) continue;  // a twin would level nothing; the slot stays empty
        int k = best * S;
        while (held[k] != EMPTY) k++;
        held[k] = (int16_t)e;
        free_slots[best]--;
        time[best] += copy[i].load * p->pace[best];
    }
    for (int e = 0; e < E && !done; e++) {
        int found = 0;
        for (int k = 0; k < R * S && !found; k++) found = held[k] == e;
        if (!found) done = -1;
    }
out:
    free(free_slots), free(copies), free(time), free(heap), free(copy);
    return done;
}

// A full layout of one layer from nothing, and the repair of one that lost ranks. Both greedy, in microseconds.

#include <stdlib.h>

#include "problem.h"

typedef struct {
    double load;
    int expert;
} item;

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

// A full layout: min_copies of each expert, then copies where tokens per copy are most. Then the heaviest copy goes to the
// rank that is least busy, has room and no copy of it (with spread, nor a rank of its node, while there is a choice).
// load: [experts]. Slots that are not ABSENT are filled. Returns 0, or -1 when some expert found no slot or memory ran out.
int tokenyard_layout(const problem *p, int16_t *held) {
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
    int least = p->min_copies > 1 ? p->min_copies : 1;
    for (int e = 0; e < E; e++) heap[e] = (item){p->load[e] / least, e}, copies[e] = least;
    for (int i = E / 2 - 1; i >= 0; i--) sink(heap, E, i);
    int left = room - E * least, size = E;
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
            if (!free_slots[r] || (best_class == 0 && time[r] >= time[best])) continue;
            int class = 0;
            for (int k = r * S; k < r * S + S && class < 2; k++) class = held[k] == e ? 2 : 0;
            if (!class && p->node && p->spread)
                for (int q = 0; q < R && !class; q++)
                    if (q != r && p->node[q] == p->node[r])
                        for (int k = q * S; k < q * S + S && !class; k++) class = held[k] == e;
            if (class < best_class || (class == best_class && time[r] < time[best])) best = r, best_class = class;
        }
        if (best < 0 || best_class == 2) continue;  // a twin would level nothing; the slot stays empty
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

// A layout that is repaired. copies: [experts] on live ranks; time: [ranks] where copies share alike.
typedef struct {
    const problem *p;
    int16_t *held;
    int *copies;
    double *time;
} repair;

static int on_rank(const repair *s, int e, int rank) {
    const int16_t *own = s->held + rank * s->p->slots_per_rank;
    for (int k = 0; k < s->p->slots_per_rank; k++)
        if (own[k] == e) return 1;
    return 0;
}

static int on_node(const repair *s, int e, int rank) {
    const problem *p = s->p;
    for (int r = 0; r < p->ranks; r++)
        if (p->pace[r] > 0 && p->node[r] == p->node[rank] && on_rank(s, e, r)) return 1;
    return 0;
}

// Every rank with a copy of e has so many tokens more, or less.
static void add_time(const repair *s, int e, double tokens) {
    const problem *p = s->p;
    for (int k = 0; k < p->ranks * p->slots_per_rank; k++)
        if (s->held[k] == e && p->pace[k / p->slots_per_rank] > 0)
            s->time[k / p->slots_per_rank] += tokens * p->pace[k / p->slots_per_rank];
}

// Count copies and times. A second copy on a rank levels nothing: its slot becomes empty.
static void count(repair *s) {
    const problem *p = s->p;
    for (int r = 0; r < p->ranks; r++)
        for (int k = r * p->slots_per_rank; k < (r + 1) * p->slots_per_rank; k++) {
            int twin = 0;
            if (s->held[k] < 0 || p->pace[r] <= 0) continue;
            for (int j = r * p->slots_per_rank; j < k && !twin; j++) twin = s->held[j] == s->held[k];
            if (twin)
                s->held[k] = EMPTY;
            else
                s->copies[s->held[k]]++;
        }
    for (int k = 0; k < p->ranks * p->slots_per_rank; k++) {
        int e = s->held[k], r = k / p->slots_per_rank;
        if (e >= 0 && p->pace[r] > 0) s->time[r] += p->load[e] / s->copies[e] * p->pace[r];
    }
}

static void clear(repair *s, int slot) {
    int f = s->held[slot];
    if (f < 0) return;
    add_time(s, f, -s->p->load[f] / s->copies[f]);
    s->held[slot] = EMPTY;
    s->copies[f]--;
    if (s->copies[f]) add_time(s, f, s->p->load[f] / s->copies[f]);
}

// Every slot that could be given is on a rank that holds e. Such a rank takes an expert f from a rank without e, whose slot
// is returned; -1: there is none. There is one if all ranks have as many slots: the first has a slot fewer in use.
static int make_room(repair *s, int e, int has) {
    const problem *p = s->p;
    int slots = p->ranks * p->slots_per_rank;
    for (int k = 0; k < slots; k++) {
        int g = s->held[k], to = k / p->slots_per_rank;
        if (p->pace[to] <= 0 || g == ABSENT || (g >= 0 && s->copies[g] <= has) || g == e) continue;
        for (int j = 0; j < slots; j++) {
            int f = s->held[j], from = j / p->slots_per_rank;
            if (f < 0 || p->pace[from] <= 0 || on_rank(s, e, from) || on_rank(s, f, to)) continue;
            clear(s, k);
            s->time[to] += p->load[f] / s->copies[f] * p->pace[to];
            s->time[from] -= p->load[f] / s->copies[f] * p->pace[from];
            s->held[k] = (int16_t)f;
            s->held[j] = EMPTY;
            return j;
        }
    }
    return -1;
}

// Give e one more copy: in an empty slot, else in the one whose copy is missed least, on the rank that ends up least busy,
// on a node without one where copies go to different nodes. Who gives a slot has more copies than e gets. 0: no slot.
static int give(repair *s, int e) {
    const problem *p = s->p;
    int best = -1, best_beside = 1, has = s->copies[e] + 1;
    double least = 0;
    for (int k = 0; k < p->ranks * p->slots_per_rank; k++) {
        int f = s->held[k], r = k / p->slots_per_rank;
        if (p->pace[r] <= 0 || f == ABSENT || (f >= 0 && s->copies[f] <= has) || on_rank(s, e, r)) continue;
        int beside = p->node && p->spread && on_node(s, e, r);
        double freed = f >= 0 ? p->load[f] / s->copies[f] : 0, spread = f >= 0 ? freed / (s->copies[f] - 1) : 0;
        double cost = s->time[r] + (p->load[e] / has - freed) * p->pace[r] + spread;
        if (best < 0 || beside < best_beside || (beside == best_beside && cost < least))
            best = k, least = cost, best_beside = beside;
    }
    if (best < 0) best = make_room(s, e, has);
    if (best < 0) return 0;
    clear(s, best);
    if (s->copies[e]) add_time(s, e, -p->load[e] / s->copies[e]);
    s->held[best] = (int16_t)e;
    s->copies[e] = has;
    add_time(s, e, p->load[e] / has);
    return 1;
}

// Give every expert min_copies copies on live ranks, the first ones first and the heaviest experts first. The rest of the
// layout stays. load: [experts]. Returns how many were placed, -1 when some expert has no slot or there is no memory.
int tokenyard_repair(const problem *p, int16_t *held) {
    int E = p->experts, placed = 0, least = p->min_copies > 1 ? p->min_copies : 1;
    repair s = {p, held, calloc(E, sizeof(int)), calloc(p->ranks, sizeof(double))};
    item *few = malloc(sizeof(item) * E);
    if (!s.copies || !s.time || !few) placed = -1;
    if (placed == 0) count(&s);
    for (int has = 0; has < least && placed >= 0; has++) {
        int found = 0;
        for (int e = 0; e < E; e++)
            if (s.copies[e] == has) few[found++] = (item){p->load[e], e};
        qsort(few, found, sizeof(item), heavier);
        for (int i = 0; i < found && placed >= 0; i++) {
            if (give(&s, few[i].expert))
                placed++;
            else if (has == 0)
                placed = -1;
        }
    }
    free(s.copies), free(s.time), free(few);
    return placed;
}

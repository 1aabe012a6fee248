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

// A full layout: copies where tokens per copy are most, then the heaviest copy onto the rank that is least busy, has
// room and no copy of it (with spread, nor a rank of its node, while there is a choice). load: [experts]. Slots that are not
// ABSENT are filled. Returns 0, or -1 when some expert found no slot or memory ran out.
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

// Give every expert without a copy on a live rank a slot: an empty one, else the one whose copy is missed least, on the
// rank that ends up least busy. The rest of the layout stays. load: [experts]. Returns how many were placed, -1 when
// there are too few slots or no memory.
int tokenyard_repair(const problem *p, int16_t *held) {
    int E = p->experts, R = p->ranks, S = p->slots_per_rank, placed = 0;
    int *copies = calloc(E, sizeof(int));
    double *time = calloc(R, sizeof(double));
    item *lost = malloc(sizeof(item) * E);
    int lost_count = 0;
    if (!copies || !time || !lost) placed = -1;
    for (int k = 0; k < R * S && placed == 0; k++)
        if (held[k] >= 0 && p->pace[k / S] > 0) copies[held[k]]++;
    for (int k = 0; k < R * S && placed == 0; k++)
        if (held[k] >= 0 && p->pace[k / S] > 0) time[k / S] += p->load[held[k]] / copies[held[k]] * p->pace[k / S];
    for (int e = 0; e < E && placed == 0; e++)
        if (!copies[e]) lost[lost_count++] = (item){p->load[e], e};
    if (placed == 0) qsort(lost, lost_count, sizeof(item), heavier);
    for (int i = 0; i < lost_count && placed >= 0; i++) {
        int best = -1;
        double least = 0;
        for (int k = 0; k < R * S; k++) {
            int f = held[k], r = k / S;
            if (p->pace[r] <= 0 || f == ABSENT || (f >= 0 && copies[f] < 2)) continue;
            double freed = f >= 0 ? p->load[f] / copies[f] : 0, spread = f >= 0 ? freed / (copies[f] - 1) : 0;
            double cost = time[r] + (lost[i].load - freed) * p->pace[r] + spread;
            if (best < 0 || cost < least) best = k, least = cost;
        }
        if (best < 0) {
            placed = -1;
            break;
        }
        int f = held[best], r = best / S;
        if (f >= 0) {
            for (int k = 0; k < R * S; k++)
                if (k != best && held[k] == f && p->pace[k / S] > 0)
                    time[k / S] += p->load[f] / copies[f] / (copies[f] - 1) * p->pace[k / S];
            time[r] -= p->load[f] / copies[f] * p->pace[r];
            copies[f]--;
        }
        held[best] = (int16_t)lost[i].expert;
        copies[lost[i].expert] = 1;
        time[r] += lost[i].load * p->pace[r];
        placed++;
    }
    free(copies), free(time), free(lost);
    return placed;
}

// The split of one step and layer: how many tokens each copy of an expert gets, and which token goes where.
//
// Water-filling by pouring one expert at a time: take its tokens out, fill its ranks up to one level. The reachable
// rank loads form a base polytope, so the point of least squares, to which this converges, is also the min-max point.
// A closed set of ranks, reached from the slowest one through experts with tokens there, proves how near it is: what
// lies on the set can't leave it.
//
// Whole numbers only: every rank of a step derives the same split from the same ids, whatever its processor, and the
// Python form beside this one (exchange/waterfill.py) gives the same numbers. Tokens count in units of 1 / UNIT; time
// is tokens at normal speed, speed is relative with NORMAL for 1. A slot in use costs at least `floor` tokens of time,
// that of reading its weights, so with few tokens a whole expert goes to one copy.

#include "split.h"

#include <string.h>

#define UNIT 1024
#define NORMAL (1 << 20)

typedef int64_t i64;

static inline i64 duration(const split_table *t, int rank, i64 tokens) {
    return t->even ? tokens : tokens * NORMAL / t->speed[rank];
}

static inline i64 cost(const split_table *t, int rank, i64 tokens) {
    return tokens <= 0 ? 0 : duration(t, rank, tokens > t->floor ? tokens : t->floor);
}

static inline i64 tokens_until(const split_table *t, int rank, i64 time) {
    return t->even ? time : time * t->speed[rank] / NORMAL;
}

// The level to which n tokens fill the `used` first ranks of an order.
static i64 level_of(const split_table *t, const int32_t *rank, const int *order, int used, const i64 *time, i64 n) {
    i64 rate = 0, filled = 0;
    for (int i = 0; i < used; i++) {
        int r = rank[order[i]];
        i64 speed = t->even ? 1 : t->speed[r];
        rate += speed;
        filled += time[r] * speed;
    }
    return (n * (t->even ? 1 : NORMAL) + filled) / rate;
}

static void sort_ranks(const split_table *t, const int32_t *rank, int width, const i64 *time, int *order) {
    for (int i = 0; i < width; i++) {
        i64 key = time[rank[i]] + cost(t, rank[i], t->floor);
        int j = i;
        for (; j > 0 && time[rank[order[j - 1]]] + cost(t, rank[order[j - 1]], t->floor) > key; j--)
            order[j] = order[j - 1];
        order[j] = i;
    }
}

// How many of the ordered ranks to use. Without a floor: those below the level. With one: what gives the least sum of
// squared times, which weighs a level against the extra work of reading one more copy.
static int ranks_used(const split_table *t, const int32_t *rank, const int *order, int width, const i64 *time, i64 n) {
    int best = 1;
    i64 least = 0;
    for (int used = 1; used <= width; used++) {
        i64 level = level_of(t, rank, order, used, time, n);
        if (used > 1 && level <= time[rank[order[used - 1]]]) break;
        if (t->floor == 0) {
            best = used;
            continue;
        }
        i64 change = 0;
        for (int i = 0; i < used; i++) {
            int r = rank[order[i]];
            i64 up = level > time[r] ? level - time[r] : 0;
            i64 more = cost(t, r, tokens_until(t, r, up)) / UNIT, before = time[r] / UNIT;
            change += more * (2 * before + more);
        }
        if (used == 1 || change < least) best = used, least = change;
    }
    return best;
}

static void pour(const split_table *t, const int32_t *rank, int width, i64 n, i64 *time, i64 *share) {
    if (width == 2 && t->even && t->floor == 0) {
        i64 a = time[rank[0]], b = time[rank[1]], twice = n + b - a;
        i64 first = twice <= 0 ? 0 : twice >= 2 * n ? n : twice / 2;
        share[0] = first;
        share[1] = n - first;
        time[rank[0]] = a + first;
        time[rank[1]] = b + n - first;
        return;
    }
    int order[width];
    sort_ranks(t, rank, width, time, order);
    int used = ranks_used(t, rank, order, width, time, n);
    i64 level = level_of(t, rank, order, used, time, n), left = n;
    memset(share, 0, sizeof(i64) * width);
    for (int i = 0; i < used; i++) {
        int r = rank[order[i]];
        i64 part = level > time[r] ? tokens_until(t, r, level - time[r]) : 0;
        if (part > left || i == used - 1) part = left;
        share[order[i]] = part;
        left -= part;
        time[r] += cost(t, r, part);
    }
}

static void sweep(const split_table *t, const i64 *count, const int *order, i64 *time, i64 *share) {
    for (int j = 0; j < t->replicated; j++) {
        int i = order[j], at = t->start[i], width = t->start[i + 1] - at;
        if (count[i] == 0) continue;
        for (int k = at; k < at + width; k++) time[t->rank[k]] -= cost(t, t->rank[k], share[k]);
        pour(t, t->rank + at, width, count[i], time, share + at);
    }
}

static i64 slowest(const split_table *t, const i64 *time) {
    i64 most = 0;
    for (int r = 0; r < t->ranks; r++)
        if (time[r] > most) most = time[r];
    return most;
}

// Whether no division of the tokens makes the slowest rank quicker by more than the slack (or by one token).
static int proved(const split_table *t, const i64 *count, const i64 *time, const i64 *share) {
    i64 most = slowest(t, time), allowed = most / t->slack > UNIT / 2 ? most / t->slack : UNIT / 2;
    uint8_t in[t->ranks];
    for (int r = 0; r < t->ranks; r++) in[r] = time[r] == most;
    for (int grew = 1; grew;) {
        grew = 0;
        for (int i = 0; i < t->replicated; i++) {
            int inside = 0, outside = 0;
            if (count[i] == 0) continue;
            for (int k = t->start[i]; k < t->start[i + 1]; k++) {
                inside |= in[t->rank[k]] && share[k] > 0;
                outside |= !in[t->rank[k]];
            }
            if (!inside || !outside) continue;
            for (int k = t->start[i]; k < t->start[i + 1]; k++) in[t->rank[k]] = 1;
            grew = 1;
        }
    }
    i64 work = 0, speed = 0;
    for (int r = 0; r < t->ranks; r++)
        if (in[r]) {
            i64 own = t->even ? 1 : t->speed[r];
            work += time[r] * own;
            speed += own;
        }
    return most - work / speed <= allowed;
}

// Whole tokens: each share rounded down, what is left over to the ranks that rounding left most idle.
static void round_shares(const split_table *t, const i64 *count, int turn, const i64 *share, i64 *quota) {
    i64 behind[t->ranks];
    memset(behind, 0, sizeof(behind));
    for (int k = 0; k < t->start[t->replicated]; k++) {
        quota[k] = share[k] / UNIT;
        behind[t->rank[k]] += share[k] % UNIT;
    }
    for (int i = 0; i < t->replicated; i++) {
        int at = t->start[i], width = t->start[i + 1] - at;
        i64 left = count[i] / UNIT;
        for (int k = at; k < at + width; k++) left -= quota[k];
        for (; left > 0; left--) {
            int best = -1;
            for (int j = 0; j < width; j++) {
                int k = at + (j + turn + i) % width;
                if (share[k] > 0 && (best < 0 || behind[t->rank[k]] > behind[t->rank[best]])) best = k;
            }
            quota[best]++;
            behind[t->rank[best]] -= UNIT;
        }
    }
}

// Time of the slowest rank when every expert stays on its first copy.
static i64 slowest_at_home(const split_table *t, const i64 *counts) {
    i64 time[t->ranks + 1];
    memset(time, 0, sizeof(time));
    for (int e = 1; e <= t->experts; e++) time[t->home[e]] += cost(t, t->home[e], counts[e] * UNIT);
    return slowest(t, time);
}

// quota: [copies] tokens each copy of a replicated expert gets. counts: [experts + 1] tokens, "none" first.
void tokenyard_quotas(const split_table *t, const i64 *counts, int turn, i64 *quota) {
    i64 time[t->ranks + 1], count[t->replicated + 1], share[t->start[t->replicated] + 1];
    int order[t->replicated + 1];
    memset(time, 0, sizeof(time));
    memset(share, 0, sizeof(share));
    for (int e = 1; e <= t->experts; e++) time[t->home[e]] += cost(t, t->home[e], counts[e] * UNIT);
    for (int i = 0; i < t->replicated; i++) {
        int home = t->rank[t->start[i]], j = i;
        count[i] = counts[t->expert[i]] * UNIT;
        time[home] -= cost(t, home, count[i]);
        for (; j > 0 && count[order[j - 1]] < count[i]; j--) order[j] = order[j - 1];
        order[j] = i;
    }
    for (int done = 0; done < t->sweeps; done++) {
        i64 before = slowest(t, time);
        sweep(t, count, order, time, share);
        if (t->replicated <= 1 || (t->floor && done && slowest(t, time) >= before)) break;
        if (!t->floor && (done & 1) && proved(t, count, time, share)) break;
    }
    if (t->floor && slowest_at_home(t, counts) < slowest(t, time)) {
        memset(share, 0, sizeof(share));
        for (int i = 0; i < t->replicated; i++) share[t->start[i]] = count[i];
    }
    round_shares(t, count, turn, share, quota);
}

// slots: [pairs] the slot each pair goes to. ids: [pairs] logical experts, -1 = none. Tokens of a replicated expert are
// dealt to its copies in order.
void tokenyard_split(const split_table *t, const int16_t *ids, i64 pairs, int turn, int32_t *slots) {
    i64 counts[t->experts + 1], quota[t->start[t->replicated] + 1];
    int32_t which[t->experts + 1], at[t->replicated + 1];
    if (t->replicated == 0) {
        for (i64 p = 0; p < pairs; p++) slots[p] = t->lookup[ids[p] + 1];
        return;
    }
    memset(counts, 0, sizeof(counts));
    for (i64 p = 0; p < pairs; p++) counts[ids[p] + 1]++;
    tokenyard_quotas(t, counts, turn, quota);
    memset(which, -1, sizeof(which));
    for (int i = 0; i < t->replicated; i++) which[t->expert[i]] = i, at[i] = t->start[i];
    for (i64 p = 0; p < pairs; p++) {
        int i = which[ids[p] + 1];
        if (i < 0) {
            slots[p] = t->lookup[ids[p] + 1];
            continue;
        }
        while (quota[at[i]] == 0) at[i]++;
        quota[at[i]]--;
        slots[p] = t->slot[at[i]];
    }
}

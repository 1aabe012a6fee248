/* Grouped SwiGLU for one kind of element; included once per kind with these defined:
 *
 *   NAME(f)         the kind's name for f
 *   W, X            types of a weight and of a prepared element of x
 *   STEP            elements per step of a dot product
 *   STEP_DOT, TAIL  acc + one step of weights (as vu) times x; one weight times one prepared element
 *   TAKE, PREPARE   prepare `count` elements of x, from the caller's type and from float32; TAKE is not needed where
 *                   a prepared element is the caller's, so that j->x is what the caller gave
 *
 * Every weight is read from memory once per call: a block of rows stays in cache while all rows of x pass by.
 */

/* out[m * BLOCK + r] = dot(w + r * ldw, x[m]), count elements each, for constant ROWS and COLS. */
INLINE void NAME(tile)(const W *w, int64_t ldw, const X *const *x, int64_t count, float *out, const int ROWS,
                       const int COLS)
{
    vf acc[8][6];
    int64_t whole = count / STEP * STEP;
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int m = 0; m < COLS; m++)
            acc[r][m] = (vf){0};
    for (int64_t i = 0; i < whole; i += STEP)
        UNROLL for (int r = 0; r < ROWS; r++) {
            const W *part = w + r * ldw + i;
            __builtin_prefetch(part + ROWS * ldw); /* a row is too short for the processor to see a stream */
            UNROLL for (int m = 0; m < COLS; m++)
                acc[r][m] = STEP_DOT(acc[r][m], part, x[m] + i);
        }
    UNROLL for (int q = 0; q < ROWS * COLS; q += 4) {
        const vf none = {0};
        const int many = ROWS * COLS;
        quad sums = sum_lanes(acc[q % ROWS][q / ROWS], q + 1 < many ? acc[(q + 1) % ROWS][(q + 1) / ROWS] : none,
                              q + 2 < many ? acc[(q + 2) % ROWS][(q + 2) / ROWS] : none,
                              q + 3 < many ? acc[(q + 3) % ROWS][(q + 3) / ROWS] : none);
        UNROLL for (int o = 0; o < 4; o++)
            if (q + o < many)
                out[(q + o) / ROWS * BLOCK + (q + o) % ROWS] = sums[o];
    }
    if (whole < count)
        for (int r = 0; r < ROWS; r++)
            for (int m = 0; m < COLS; m++)
                for (int64_t i = whole; i < count; i++)
                    out[m * BLOCK + r] += TAIL(w[r * ldw + i], x[m][i]);
}

#define TILE(ROWS, COLS)                                                                       \
    for (; r + (ROWS) <= rows; r += (ROWS))                                                    \
        NAME(tile)(w + r * ldw, ldw, x + m, count, out + m * BLOCK + r, ROWS, COLS);           \
    break;

/* The same for any number of weight rows up to BLOCK and of rows of x up to CHUNK: as many accumulators at a time as
 * the registers hold, rows of x in even parts, so that no part is left with few. */
static void NAME(block)(const W *w, int64_t ldw, int64_t rows, const X *const *x, int64_t cols, int64_t count,
                        float *out)
{
    int64_t parts = (cols + MOST_COLS - 1) / MOST_COLS, m = 0;
    for (int64_t part = 0; part < parts; part++) {
        int64_t wide = (cols - m + parts - part - 1) / (parts - part), r = 0;
        switch (wide) {
        case 1: TILE(8, 1)
        case 2: TILE(LANES == 16 ? 8 : 4, 2)
        case 3: TILE(LANES == 16 ? 8 : 4, 3)
        case 4: TILE(LANES == 16 ? 4 : 2, 4)
#if LANES == 16
        case 5: TILE(4, 5)
        case 6: TILE(4, 6)
#endif
        }
        for (; r < rows; r++)
            for (int64_t one = m; one < m + wide; one++)
                NAME(tile)(w + r * ldw, ldw, x + one, count, out + one * BLOCK + r, 1, 1);
        m += wide;
    }
}

#undef TILE

/* silu(gate) * up of all pairs of one slot, places [i, i + rows) of the width. */
static void NAME(up)(const struct job *j, const W *w13, int64_t slot, int64_t i, int64_t rows)
{
    const W *gate = w13 + (slot * 2 * j->width + i) * j->hidden, *up = gate + j->width * j->hidden;
    float gates[CHUNK * BLOCK] = {0}, ups[CHUNK * BLOCK] = {0};
    for (int64_t p = j->begin[slot]; p < j->begin[slot + 1]; p += CHUNK) {
        int64_t cols = smaller(CHUNK, j->begin[slot + 1] - p);
        const X *x[CHUNK];
        for (int64_t m = 0; m < cols; m++)
            x[m] = (const X *)j->x + j->row[p + m] * j->hidden;
        NAME(block)(gate, j->hidden, rows, x, cols, j->hidden, gates);
        NAME(block)(up, j->hidden, rows, x, cols, j->hidden, ups);
        for (int64_t m = 0; m < cols; m++) {
            float *g = gates + m * BLOCK, *u = ups + m * BLOCK;
            for (int64_t r = 0; r < BLOCK; r += LANES) {
                vf gv = load_f(g + r), h = gv / (exp_lanes(-gv) + 1.0f) * load_f(u + r);
                memcpy(g + r, &h, sizeof h);
            }
            PREPARE((X *)j->hiddens + (p + m) * j->width + i, g, rows);
        }
    }
}

/* Places [h, h + rows) of every row's sum, slots in rising order. */
static void NAME(down)(const struct job *j, const W *w2, int64_t h, int64_t rows)
{
    for (int64_t n = 0; n < j->rows; n++)
        memset(j->out + n * j->hidden + h, 0, rows * sizeof(float));
    for (int64_t a = 0; a < j->active; a++) {
        int64_t slot = j->used[a];
        const W *w = w2 + (slot * j->hidden + h) * j->width;
        for (int64_t p = j->begin[slot]; p < j->begin[slot + 1]; p += CHUNK) {
            int64_t cols = smaller(CHUNK, j->begin[slot + 1] - p);
            const X *x[CHUNK];
            float sums[CHUNK * BLOCK];
            for (int64_t m = 0; m < cols; m++)
                x[m] = (const X *)j->hiddens + (p + m) * j->width;
            NAME(block)(w, j->width, rows, x, cols, j->width, sums);
            for (int64_t m = 0; m < cols; m++) {
                float *to = j->out + j->row[p + m] * j->hidden + h;
                for (int64_t r = 0; r < rows; r++)
                    to[r] += j->weight[p + m] * sums[m * BLOCK + r];
            }
        }
    }
}

static void NAME(run)(const struct job *j, const W *x, const W *w13, const W *w2)
{
    int64_t ups = (j->width + BLOCK - 1) / BLOCK, downs = (j->hidden + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(j->threads)
    {
        if (j->x != x) {
#pragma omp for schedule(static)
            for (int64_t n = 0; n < j->rows; n++)
                TAKE((X *)j->x + n * j->hidden, x + n * j->hidden, j->hidden);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < j->active * ups; item++) {
            int64_t i = item % ups * BLOCK;
            NAME(up)(j, w13, j->used[item / ups], i, smaller(BLOCK, j->width - i));
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < downs; item++)
            NAME(down)(j, w2, item * BLOCK, smaller(BLOCK, j->hidden - item * BLOCK));
    }
}

#undef NAME
#undef W
#undef X
#undef STEP
#undef STEP_DOT
#undef TAIL
#undef TAKE
#undef PREPARE

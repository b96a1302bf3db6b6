/* The Inception blocks of `fsmer.backbones.fr` in training: one stream of them forward, and backward.
 *
 * Filters are few, but batches are not: sixteen clips lie side by side in a vector of sixteen floats, so that whatever
 * is done to a pixel is one instruction for all of them. Every map is a plane of such vectors with a border of two
 * zeros, which convolutions of 3x3 and 5x5 may read.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BORDER 2
#define MOST_BLOCKS 4
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef int32_t bits __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

typedef struct {
    int inputs, filters, side, row, plane;
} block;

/* What a block keeps of a group of clips for its backward pass, one after the other. */
typedef struct {
    vec *in, *before3, *before5, *largest, *out;
} kept;

/* Weights of a block as torch has them: points, 3x3, 5x5 and pooled, each with its biases. */
typedef struct {
    float *points, *points_bias, *three, *three_bias, *five, *five_bias, *pooled, *pooled_bias;
} layers;

INLINE vec where(bits chosen, vec v) { return (vec)((bits)v & chosen); }

INLINE vec larger(vec one, vec other) {
    const bits more = one > other;
    return (vec)(((bits)one & more) | ((bits)other & ~more));
}

/* What is not a number stays so, for a training that has gone astray is to be seen. */
INLINE vec rectified(vec v) { return where(~(v <= (vec){0}), v); }

INLINE float total(vec v) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

static int lay_out(block *b, int64_t side, int64_t blocks, const int64_t *filters) {
    /* The last one is what the last block gives. */
    for (int k = 0; k <= blocks; k++, side /= 2) {
        const int inputs = k ? 4 * b[k - 1].filters : 1, row = (int)side + 2 * BORDER;
        b[k] = (block){inputs, k < blocks ? (int)filters[k] : 0, (int)side, row, row * row};
    }
    return (int)blocks;
}

static int64_t divide(vec *room, const block *b, int blocks, kept *k) {
    vec *at = room;
    for (int n = 0; n <= blocks; n++) {
        const int64_t planes[5] = {b[n].inputs, b[n].filters, b[n].filters, b[n].filters ? b[n].inputs : 0,
                                   4 * (int64_t)b[n].filters};
        vec **parts[5] = {&k[n].in, &k[n].before3, &k[n].before5, &k[n].largest, &k[n].out};
        for (int part = 0; part < 5; part++) {
            *parts[part] = at;
            at += planes[part] * b[n].plane;
        }
    }
    return at - room;
}

/* Vectors of room that a group of sixteen clips needs. */
int64_t inception_room(int64_t side, int64_t blocks, const int64_t *filters) {
    block b[MOST_BLOCKS + 1];
    kept k[MOST_BLOCKS + 1];
    return divide(NULL, b, lay_out(b, side, blocks, filters), k);
}

static void clear_borders(vec *planes, int count, const block *b) {
    const int edge = BORDER * b->row + BORDER;
    for (int plane = 0; plane < count; plane++, planes += b->plane) {
        memset(planes, 0, edge * sizeof(vec));
        for (int y = 1; y < b->side; y++) memset(planes + edge + y * b->row - 2 * BORDER, 0, 2 * BORDER * sizeof(vec));
        memset(planes + b->plane - edge, 0, edge * sizeof(vec));
    }
}

INLINE int pixel(const block *b, int y, int x) { return (y + BORDER) * b->row + x + BORDER; }

/* Sums of OUT filters of SIDE x SIDE taps at some pixels of a row; weights are (inputs, taps, OUT). */
INLINE void convolve_pixels(const int SIDE, const int OUT, const int PIXELS, const block *b, int inputs, const vec *in,
                            const float *weight, const float *bias, int add, int rectify, int where_, vec *out) {
    vec sum[PIXELS][OUT];
    for (int p = 0; p < PIXELS; p++)
        for (int f = 0; f < OUT; f++)
            sum[p][f] = add ? out[f * b->plane + where_ + p] : (vec){0} + (bias ? bias[f] : 0.0f);
    const int reach = SIDE / 2;
    for (int i = 0; i < inputs; i++)
        for (int dy = 0; dy < SIDE; dy++) {
            const vec *from = in + i * b->plane + where_ + (dy - reach) * b->row - reach;
            const float *w = weight + (i * SIDE + dy) * SIDE * OUT;
            for (int dx = 0; dx < SIDE; dx++)
#pragma GCC unroll 24
                for (int f = 0; f < OUT; f++)
#pragma GCC unroll 4
                    for (int p = 0; p < PIXELS; p++) sum[p][f] += from[dx + p] * w[dx * OUT + f];
        }
    for (int p = 0; p < PIXELS; p++)
        for (int f = 0; f < OUT; f++) out[f * b->plane + where_ + p] = rectify ? rectified(sum[p][f]) : sum[p][f];
}

INLINE void convolve_as(const int SIDE, const int OUT, const int PIXELS, const block *b, int inputs, const vec *in,
                        const float *weight, const float *bias, int add, int rectify, vec *out) {
    for (int y = 0; y < b->side; y++) {
        int x = 0;
        for (; x + PIXELS <= b->side; x += PIXELS)
            convolve_pixels(SIDE, OUT, PIXELS, b, inputs, in, weight, bias, add, rectify, pixel(b, y, x), out);
        for (; x < b->side; x++)
            convolve_pixels(SIDE, OUT, 1, b, inputs, in, weight, bias, add, rectify, pixel(b, y, x), out);
    }
}

/* As many accumulators as registers hold beside what they are made of. */
#define CONVOLVE(SIDE, OUT, PIXELS)                                                                                    \
    if (side == SIDE && outputs == OUT) {                                                                              \
        convolve_as(SIDE, OUT, PIXELS, b, inputs, in, weight, bias, add, rectify, out);                                \
        return;                                                                                                        \
    }

static void convolve(int side, int outputs, const block *b, int inputs, const vec *in, const float *weight,
                     const float *bias, int add, int rectify, vec *out) {
    CONVOLVE(1, 6, 4)
    CONVOLVE(3, 6, 4)
    CONVOLVE(5, 6, 4)
    CONVOLVE(1, 8, 3)
    CONVOLVE(1, 16, 1)
    CONVOLVE(3, 16, 1)
    CONVOLVE(5, 16, 1)
    abort();
}

/* Adds to (inputs, taps, outputs) what OUT weights meet: a value at their tap times a slope at their filter. */
INLINE void meet_taps(const int OUT, const int TAPS, const block *b, const int *offsets, const vec *in,
                      const vec *slopes, int outputs, float *to) {
    vec sum[TAPS][OUT];
    for (int t = 0; t < TAPS; t++)
        for (int f = 0; f < OUT; f++) sum[t][f] = (vec){0};
    for (int y = 0; y < b->side; y++)
        for (int at = pixel(b, y, 0), end = at + b->side; at < end; at++)
#pragma GCC unroll 24
            for (int f = 0; f < OUT; f++) {
                const vec slope = slopes[f * b->plane + at];
#pragma GCC unroll 4
                for (int t = 0; t < TAPS; t++) sum[t][f] += in[at + offsets[t]] * slope;
            }
    for (int t = 0; t < TAPS; t++)
        for (int f = 0; f < OUT; f++) to[t * outputs + f] += total(sum[t][f]);
}

INLINE void meet_as(const int OUT, const int TAPS, int side, const block *b, int inputs, const vec *in,
                    const vec *slopes, int outputs, float *to) {
    int offsets[25];
    const int taps = side * side, reach = side / 2;
    for (int t = 0; t < taps; t++) offsets[t] = (t / side - reach) * b->row + t % side - reach;
    for (int i = 0; i < inputs; i++, in += b->plane) {
        int t = 0;
        for (; t + TAPS <= taps; t += TAPS)
            meet_taps(OUT, TAPS, b, offsets + t, in, slopes, outputs, to + (i * taps + t) * outputs);
        for (; t < taps; t++) meet_taps(OUT, 1, b, offsets + t, in, slopes, outputs, to + (i * taps + t) * outputs);
    }
}

static void meet(int side, int outputs, const block *b, int inputs, const vec *in, const vec *slopes, float *to) {
    if (outputs == 6) meet_as(6, 3, side, b, inputs, in, slopes, outputs, to);
    else if (outputs == 16 && side == 1) meet_as(16, 1, side, b, inputs, in, slopes, outputs, to);
    else if (outputs == 16)
        for (int half = 0; half < 16; half += 8)
            meet_as(8, 3, side, b, inputs, in, slopes + half * b->plane, outputs, to + half);
    else abort();
}

/* (outputs, inputs * taps) to (inputs * taps, outputs), or back again. */
static void turn(const float *from, int rows, int columns, float *to) {
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) to[column * rows + row] = from[row * columns + column];
}

/* (outputs, inputs, taps) to what leads slopes of outputs back to a chunk of the inputs: (outputs, taps, chunk). */
static void reverse(const float *from, int outputs, int inputs, int taps, int first, int chunk, float *to) {
    for (int o = 0; o < outputs; o++)
        for (int t = 0; t < taps; t++)
            for (int i = 0; i < chunk; i++)
                to[(o * taps + t) * chunk + i] = from[(o * inputs + first + i) * taps + taps - 1 - t];
}

/* Pixels (ny, nx) of the 3x3 neighbourhood of (y, x). */
#define NEIGHBOURS                                                                                                     \
    for (int ny = y ? y - 1 : 0; ny < y + 2 && ny < b->side; ny++)                                                     \
        for (int nx = x ? x - 1 : 0; nx < x + 2 && nx < b->side; nx++)

/* The largest value of every 3x3 neighbourhood. */
static void pool_same(const block *b, const vec *in, vec *out) {
    for (int i = 0; i < b->inputs; i++, in += b->plane, out += b->plane)
        for (int y = 0; y < b->side; y++)
            for (int x = 0; x < b->side; x++) {
                vec best = in[pixel(b, y, x)];
                NEIGHBOURS best = larger(in[pixel(b, ny, nx)], best);
                out[pixel(b, y, x)] = best;
            }
}

/* Its slopes go to the first value of a neighbourhood that is the largest. */
static void unpool_same(const block *b, const vec *in, const vec *out, const vec *slopes, vec *to) {
    for (int i = 0; i < b->inputs; i++, in += b->plane, out += b->plane, slopes += b->plane, to += b->plane)
        for (int y = 0; y < b->side; y++)
            for (int x = 0; x < b->side; x++) {
                const vec best = out[pixel(b, y, x)], slope = slopes[pixel(b, y, x)];
                bits open = ~(bits){0};
                NEIGHBOURS {
                    const bits here = (in[pixel(b, ny, nx)] == best) & open;
                    to[pixel(b, ny, nx)] += where(here, slope);
                    open &= ~here;
                }
            }
}

static void pool_half(const block *b, const vec *in, const block *half, vec *out) {
    for (int c = 0; c < 4 * b->filters; c++, in += b->plane, out += half->plane)
        for (int y = 0; y < half->side; y++)
            for (int x = 0; x < half->side; x++) {
                const vec *at = in + pixel(b, 2 * y, 2 * x);
                out[pixel(half, y, x)] = larger(at[b->row + 1], larger(at[b->row], larger(at[1], at[0])));
            }
}

/* Slopes of halved maps to slopes before the rectifier: to the first that is the largest, if it is above zero. */
static void unpool_half(const block *b, const vec *in, const block *half, const vec *out, const vec *slopes, vec *to) {
    memset(to, 0, (size_t)4 * b->filters * b->plane * sizeof(vec));
    for (int c = 0; c < 4 * b->filters; c++, in += b->plane, to += b->plane, out += half->plane, slopes += half->plane)
        for (int y = 0; y < half->side; y++)
            for (int x = 0; x < half->side; x++) {
                const int from = pixel(half, y, x), at = pixel(b, 2 * y, 2 * x);
                const int corners[4] = {at, at + 1, at + b->row, at + b->row + 1};
                bits open = ~(out[from] <= (vec){0});
                for (int k = 0; k < 4; k++) {
                    const bits here = (in[corners[k]] == out[from]) & open;
                    to[corners[k]] = where(here, slopes[from]);
                    open &= ~here;
                }
            }
}

static void forward_block(const block *b, const layers *w, const kept *k, const block *half, vec *out) {
    const int f = b->filters, n = b->inputs;
    float turned[25 * 16 * 16 + 16 * 64];
    vec *paths[3] = {k->out, k->before3, k->before5};
    for (int part = 0; part < 3; part++) {
        turn(w->points + part * f * n, f, n, turned);
        convolve(1, f, b, n, k->in, turned, w->points_bias + part * f, 0, 1, paths[part]);
    }
    clear_borders(k->before3, f, b);
    clear_borders(k->before5, f, b);
    turn(w->three, f, f * 9, turned);
    convolve(3, f, b, f, k->before3, turned, w->three_bias, 0, 1, k->out + (int64_t)f * b->plane);
    turn(w->five, f, f * 25, turned);
    convolve(5, f, b, f, k->before5, turned, w->five_bias, 0, 1, k->out + (int64_t)2 * f * b->plane);
    pool_same(b, k->in, k->largest);
    turn(w->pooled, f, n, turned);
    convolve(1, f, b, n, k->largest, turned, w->pooled_bias, 0, 1, k->out + (int64_t)3 * f * b->plane);
    pool_half(b, k->out, half, out);
}

static void add_totals(const block *b, const vec *slopes, int count, float *to) {
    for (int f = 0; f < count; f++, slopes += b->plane) {
        vec sum = {0};
        for (int y = 0; y < b->side; y++)
            for (int x = 0; x < b->side; x++) sum += slopes[pixel(b, y, x)];
        to[f] += total(sum);
    }
}

/* Slopes of weights, turned, are added to `g`; those of what came in go to `into` unless it is null. */
static void backward_block(const block *b, const layers *w, const kept *k, const block *half, const vec *pooled,
                           const vec *slopes, vec *room, const layers *g, vec *into) {
    const int f = b->filters, n = b->inputs;
    const int64_t planes = (int64_t)f * b->plane;
    float turned[25 * 16 * 16];
    vec *before = room, *three = room + 4 * planes, *five = three + planes, *same = five + planes;
    unpool_half(b, k->out, half, pooled, slopes, before);
    vec *paths[4] = {before, before + planes, before + 2 * planes, before + 3 * planes};
    add_totals(b, paths[1], f, g->three_bias);
    add_totals(b, paths[2], f, g->five_bias);
    add_totals(b, paths[3], f, g->pooled_bias);
    meet(3, f, b, f, k->before3, paths[1], g->three);
    meet(5, f, b, f, k->before5, paths[2], g->five);
    meet(1, f, b, n, k->largest, paths[3], g->pooled);
    reverse(w->three, f, f, 9, 0, f, turned);
    convolve(3, f, b, f, paths[1], turned, NULL, 0, 0, three);
    reverse(w->five, f, f, 25, 0, f, turned);
    convolve(5, f, b, f, paths[2], turned, NULL, 0, 0, five);
    for (int c = 0; c < f; c++)
        for (int y = 0; y < b->side; y++)
            for (int x = 0; x < b->side; x++) {
                const int at = c * b->plane + pixel(b, y, x);
                three[at] = where(~(k->before3[at] <= (vec){0}), three[at]);
                five[at] = where(~(k->before5[at] <= (vec){0}), five[at]);
            }
    const vec *points[3] = {paths[0], three, five};
    for (int part = 0; part < 3; part++) {
        add_totals(b, points[part], f, g->points_bias + part * f);
        meet(1, f, b, n, k->in, points[part], g->points + part * f * n);
    }
    if (into == NULL) return;
    for (int first = 0; first < n; first += 8) {
        vec *to = into + (int64_t)first * b->plane;
        for (int part = 0; part < 3; part++) {
            reverse(w->points + part * f * n, f, n, 1, first, 8, turned);
            convolve(1, 8, b, f, points[part], turned, NULL, part > 0, 0, to);
        }
        reverse(w->pooled, f, n, 1, first, 8, turned);
        convolve(1, 8, b, f, paths[3], turned, NULL, 0, 0, same + (int64_t)first * b->plane);
    }
    unpool_same(b, k->in, k->largest, same, into);
}

/* `clips` maps of (side, side) to features (clips, 4 * filters * pixels); `room` keeps what the way back needs. */
void inception_forward(const float *maps, int64_t clips, int64_t side, int64_t count, const int64_t *filters,
                       const layers *weights, vec *room, float *features) {
    block b[MOST_BLOCKS + 1];
    kept k[MOST_BLOCKS + 1];
    const int blocks = lay_out(b, side, count, filters);
    const int64_t pixels = side * side, width = (int64_t)b[blocks].inputs * b[blocks].side * b[blocks].side;
    for (int64_t first = 0; first < clips; first += LANES) {
        const int lanes = clips - first < LANES ? (int)(clips - first) : LANES;
        room += divide(room, b, blocks, k);
        for (int64_t p = 0; p < pixels; p++) {
            vec v = {0};
            for (int lane = 0; lane < lanes; lane++) v[lane] = maps[(first + lane) * pixels + p];
            k[0].in[pixel(b, (int)(p / side), (int)(p % side))] = v;
        }
        for (int n = 0; n < blocks; n++) forward_block(b + n, weights + n, k + n, b + n + 1, k[n + 1].in);
        const block *last = b + blocks;
        const int area = last->side * last->side;
        for (int c = 0; c < last->inputs; c++)
            for (int p = 0; p < area; p++) {
                const vec v = k[blocks].in[c * last->plane + pixel(last, p / last->side, p % last->side)];
                for (int lane = 0; lane < lanes; lane++) features[(first + lane) * width + c * area + p] = v[lane];
            }
    }
}

/* Vectors of room that the way back works in. */
int64_t inception_scratch(int64_t side, int64_t count, const int64_t *filters) {
    block b[MOST_BLOCKS + 1];
    const int blocks = lay_out(b, side, count, filters);
    int64_t most = 0, slopes = 0;
    for (int n = 0; n < blocks; n++) {
        const int64_t planes = (6 * (int64_t)b[n].filters + b[n].inputs) * b[n].plane;
        if (planes > most) most = planes;
        slopes += (int64_t)b[n + 1].inputs * b[n + 1].plane;
    }
    return most + slopes;
}

/* Slopes of features to slopes of all weights; `turned` is room for those, and has those of the biases at the end. */
void inception_backward(const float *slopes, int64_t clips, int64_t side, int64_t count, const int64_t *filters,
                        const layers *weights, vec *room, vec *scratch, const layers *turned, const layers *found) {
    block b[MOST_BLOCKS + 1];
    kept k[MOST_BLOCKS + 1];
    const int blocks = lay_out(b, side, count, filters);
    const block *last = b + blocks;
    const int area = last->side * last->side;
    const int64_t width = (int64_t)last->inputs * area;
    vec *flowing[MOST_BLOCKS + 1], *work = scratch;
    for (int n = 1; n <= blocks; n++) {
        flowing[n] = work;
        work += (int64_t)b[n].inputs * b[n].plane;
    }
    for (int64_t first = 0; first < clips; first += LANES) {
        const int lanes = clips - first < LANES ? (int)(clips - first) : LANES;
        room += divide(room, b, blocks, k);
        for (int c = 0; c < last->inputs; c++)
            for (int p = 0; p < area; p++) {
                vec v = {0};
                for (int lane = 0; lane < lanes; lane++) v[lane] = slopes[(first + lane) * width + c * area + p];
                flowing[blocks][c * last->plane + pixel(last, p / last->side, p % last->side)] = v;
            }
        for (int n = blocks - 1; n >= 0; n--)
            backward_block(b + n, weights + n, k + n, b + n + 1, k[n + 1].in, flowing[n + 1], work, turned + n,
                           n ? flowing[n] : NULL);
    }
    for (int n = 0; n < blocks; n++) {
        const int f = b[n].filters, i = b[n].inputs;
        for (int part = 0; part < 3; part++)
            turn(turned[n].points + part * f * i, i, f, found[n].points + part * f * i);
        turn(turned[n].three, f * 9, f, found[n].three);
        turn(turned[n].five, f * 25, f, found[n].five);
        turn(turned[n].pooled, i, f, found[n].pooled);
    }
}

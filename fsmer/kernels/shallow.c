/* The shallow network of `fsmer.backbones.ststnet` in training: whole epochs, network, classifier and Adam.
 *
 * Sixteen filters of 3x3 on three channels make one vector of sixteen floats a pixel, so that a convolution is 27
 * multiplications of a vector with a number. Bands of rows that one row of pooling windows looks at are worked through
 * whole while they are in the nearest cache. Layout: responses and pooled maps have the filters last.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define FILTERS 16
#define TAPS 27
#define BLOCK 14
#define MOST_CLASSES 64

typedef float vec __attribute__((vector_size(4 * FILTERS)));
typedef int32_t bits __attribute__((vector_size(4 * FILTERS)));
typedef uint8_t bytes __attribute__((vector_size(FILTERS)));

typedef struct {
    int height, width, row, plane, tall, wide, windows, cells;
    int64_t pixels;
} shape;

/* What a pass over a batch reads, and the room that it works in: `padded` is one clip with zeros around it. `noise` is
 * a byte a pooled value, or null; a value is kept where its byte is not below `threshold`.
 */
typedef struct {
    shape s;
    const float *media, *weight, *bias, *scale, *offset;
    double gain, epsilon;
    int64_t height, width, padding, threshold;
    const uint8_t *noise;
    float *padded, *responses, *pooled, *embedded, *outer, *inner, *band;
    double mean[FILTERS], variance[FILTERS];
} pass;

static inline vec at(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void put(float *to, vec v) { memcpy(to, &v, sizeof v); }

static inline vec where(bits chosen, vec v) { return (vec)((bits)v & chosen); }

static inline vec larger(vec one, vec other) {
    const bits more = one > other;
    return (vec)(((bits)one & more) | ((bits)other & ~more));
}

static shape shape_of(int64_t height, int64_t width, int64_t padding) {
    shape s = {.height = (int)(height + 2 * padding - 2), .width = (int)(width + 2 * padding - 2)};
    s.row = (int)(width + 2 * padding);
    s.plane = (int)(height + 2 * padding) * s.row;
    /* Pooling windows are 3 wide and 3 apart, with one pixel of padding before the first. */
    s.tall = (s.height - 1) / 3 + 1;
    s.wide = (s.width - 1) / 3 + 1;
    s.windows = s.tall * s.wide;
    s.cells = (s.tall / 2) * (s.wide / 2);
    s.pixels = (int64_t)s.height * s.width;
    return s;
}

static inline int window(int number, int size, int *first) {
    const int end = 3 * number + 2;
    *first = number ? 3 * number - 1 : 0;
    return end < size ? end : size;
}

/* A clip of shape (3, height, width) times the gain, with zeros around it; the zeros are there already. */
static void pad(const pass *p, int64_t row) {
    const float *restrict from = p->media + row * 3 * p->height * p->width;
    for (int plane = 0; plane < 3; plane++)
        for (int y = 0; y < p->height; y++)
            for (int x = 0; x < p->width; x++)
                p->padded[plane * p->s.plane + (y + p->padding) * p->s.row + x + p->padding] =
                    (float)p->gain * from[(plane * p->height + y) * p->width + x];
}

/* Which values dropout keeps at a place of the pooled maps. */
static inline bits kept_at(const pass *p, int64_t place) {
    bytes drawn = {0};
    if (p->noise) memcpy(&drawn, p->noise + place * FILTERS, FILTERS);
    return __builtin_convertvector(drawn, bits) >= (bits){0} + (int32_t)p->threshold;
}

static inline float share_of(const pass *p) { return p->noise ? 0.25f * 256 / (256 - p->threshold) : 0.25f; }

/* Rectified responses at some pixels of a row; adds what they are above `pivot`, and its square.
 *
 * What is not a number stays so, for a training that has gone astray is to be seen.
 */
static inline __attribute__((always_inline)) void respond_at(
    const int PIXELS, const shape *s, const float *restrict from, const float *restrict weight, vec bias, vec pivot,
    float *restrict to, vec *restrict total, vec *restrict squares) {
    vec sum[PIXELS];
#pragma GCC unroll 16
    for (int j = 0; j < PIXELS; j++) sum[j] = bias;
    for (int plane = 0; plane < 3; plane++) {
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; tap++) {
            const vec w = at(weight + (plane * 9 + tap) * FILTERS);
            const float *patch = from + plane * s->plane + (tap / 3) * s->row + tap % 3;
#pragma GCC unroll 16
            for (int j = 0; j < PIXELS; j++) sum[j] += w * patch[j];
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < PIXELS; j++) {
        const vec r = where(~(sum[j] <= (vec){0}), sum[j]), above = r - pivot;
        put(to + j * FILTERS, r);
        *total += above;
        *squares += above * above;
    }
}

/* The same for some rows of a padded clip. */
static void respond(const shape *s, const float *restrict clip, const float *restrict weight, vec bias, vec pivot,
                    int first, int end, float *restrict out, vec *restrict total, vec *restrict squares) {
    vec sum_above = *total, sum_squares = *squares;
    for (int y = first; y < end; y++) {
        const float *from = clip + y * s->row;
        float *to = out + y * s->width * FILTERS;
        int x = 0;
        for (; x + BLOCK <= s->width; x += BLOCK)
            respond_at(BLOCK, s, from + x, weight, bias, pivot, to + x * FILTERS, &sum_above, &sum_squares);
        for (; x < s->width; x++)
            respond_at(1, s, from + x, weight, bias, pivot, to + x * FILTERS, &sum_above, &sum_squares);
    }
    *total = sum_above;
    *squares = sum_squares;
}

/* The media of some rows to embeddings, means and variances of the batch. */
static void forward(pass *p, const int64_t *rows, int64_t clips) {
    const shape s = p->s;
    const float *scale = p->scale, *offset = p->offset;
    float *responses = p->responses, *pooled = p->pooled;
    double *mean = p->mean, *variance = p->variance, epsilon = p->epsilon;
    double centre[FILTERS] = {0}, spread[FILTERS] = {0}, seen = 0;
    vec pivot = {0}, turn;
    int turned = 0;
    for (int c = 0; c < FILTERS; c++) {
        /* Pooling follows normalisation, which turns a map over where its scale is negative. */
        turn[c] = scale[c] < 0 ? -1.0f : 1.0f;
        turned |= scale[c] < 0;
    }
    for (int64_t clip = 0; clip < clips; clip++) {
        float *own = responses + clip * s.pixels * FILTERS;
        vec total = {0}, squares = {0};
        pad(p, rows[clip]);
        for (int wy = 0; wy < s.tall; wy++) {
            int y0, end = window(wy, s.height, &y0);
            /* The last windows may leave a row over, which counts for the statistics all the same. */
            respond(&s, p->padded, p->weight, at(p->bias), pivot, y0, wy + 1 < s.tall ? end : s.height, own,
                    &total, &squares);
            for (int wx = 0; wx < s.wide; wx++) {
                int x0;
                const int last = window(wx, s.width, &x0);
                vec best = at(own + (y0 * s.width + x0) * FILTERS) * turn;
                for (int y = y0; y < end; y++)
                    for (int x = x0; x < last; x++) {
                        const vec v = at(own + (y * s.width + x) * FILTERS);
                        best = larger(turned ? v * turn : v, best);
                    }
                put(pooled + (clip * s.windows + wy * s.wide + wx) * FILTERS, best * turn);
            }
        }
        for (int c = 0; c < FILTERS; c++) {
            const double above = total[c] / (double)s.pixels, delta = pivot[c] + above - centre[c], all = seen + s.pixels;
            spread[c] += squares[c] - above * above * s.pixels + delta * delta * seen * s.pixels / all;
            centre[c] += delta * s.pixels / all;
            pivot[c] = (float)centre[c];
        }
        seen += s.pixels;
    }
    vec slope, start;
    for (int c = 0; c < FILTERS; c++) {
        mean[c] = centre[c];
        variance[c] = spread[c] / seen;
        slope[c] = (float)(scale[c] / sqrt(variance[c] + epsilon));
        start[c] = (float)(offset[c] - mean[c] * scale[c] / sqrt(variance[c] + epsilon));
    }
    const float share = share_of(p);
    for (int64_t clip = 0; clip < clips; clip++)
        for (int cy = 0; cy < s.tall / 2; cy++)
            for (int cx = 0; cx < s.wide / 2; cx++) {
                vec sum = {0};
                for (int part = 0; part < 4; part++) {
                    const int64_t place = clip * s.windows + (2 * cy + part / 2) * s.wide + 2 * cx + part % 2;
                    sum += where(kept_at(p, place), at(pooled + place * FILTERS) * slope + start);
                }
                for (int c = 0; c < FILTERS; c++)
                    p->embedded[(clip * FILTERS + c) * s.cells + cy * (s.wide / 2) + cx] = share * sum[c];
            }
}

/* Gradients from those of the embeddings; `gradients` is (27 taps, bias, scale, offset) x filters. */
static void backward(const pass *p, const int64_t *rows, int64_t clips, double *gradients) {
    const shape s = p->s;
    const float *scale = p->scale, *responses = p->responses, *pooled = p->pooled;
    const double *mean = p->mean, *variance = p->variance, epsilon = p->epsilon;
    float *inner = p->inner, *band = p->band;
    const float share = share_of(p);
    const vec zero = {0};
    double *of_scale = gradients + (TAPS + 1) * FILTERS, *of_offset = of_scale + FILTERS;
    vec centre, inverse, factor, constant, slope;
    memset(gradients, 0, (TAPS + 3) * FILTERS * sizeof(double));
    for (int c = 0; c < FILTERS; c++) {
        centre[c] = (float)mean[c];
        inverse[c] = (float)(1 / sqrt(variance[c] + epsilon));
        factor[c] = scale[c] * inverse[c];
    }
    memset(inner, 0, sizeof(float) * clips * s.windows * FILTERS);
    for (int64_t clip = 0; clip < clips; clip++) {
        vec scales = {0}, offsets = {0};
        for (int cy = 0; cy < s.tall / 2; cy++)
            for (int cx = 0; cx < s.wide / 2; cx++) {
                vec given;
                for (int c = 0; c < FILTERS; c++)
                    given[c] = share * p->outer[(clip * FILTERS + c) * s.cells + cy * (s.wide / 2) + cx];
                for (int part = 0; part < 4; part++) {
                    const int64_t place = clip * s.windows + (2 * cy + part / 2) * s.wide + 2 * cx + part % 2;
                    const vec kept = where(kept_at(p, place), given);
                    offsets += kept;
                    scales += kept * (at(pooled + place * FILTERS) - centre) * inverse;
                    put(inner + place * FILTERS, kept * factor);
                }
            }
        for (int c = 0; c < FILTERS; c++) {
            of_scale[c] += scales[c];
            of_offset[c] += offsets[c];
        }
    }
    /* What the batch statistics hand back to every pixel: constant + slope * response. */
    for (int c = 0; c < FILTERS; c++) {
        const double all = (double)clips * s.pixels, root = 1 / sqrt(variance[c] + epsilon);
        constant[c] = (float)(-scale[c] * root * (of_offset[c] - mean[c] * root * of_scale[c]) / all);
        slope[c] = (float)(-scale[c] * root * root * of_scale[c] / all);
    }
    for (int64_t clip = 0; clip < clips; clip++) {
        pad(p, rows[clip]);
        vec sum[TAPS + 1];
#pragma GCC unroll 28
        for (int tap = 0; tap <= TAPS; tap++) sum[tap] = zero;
        for (int wy = 0; wy < s.tall; wy++) {
            int y0, end = window(wy, s.height, &y0);
            const int stop = wy + 1 < s.tall ? end : s.height;
            const float *own = responses + (clip * s.pixels + y0 * s.width) * FILTERS;
            for (int pixel = 0; pixel < (stop - y0) * s.width; pixel++) {
                const vec v = at(own + pixel * FILTERS);
                put(band + pixel * FILTERS, where(v > zero, constant + slope * v));
            }
            for (int wx = 0; wx < s.wide; wx++) {
                int x0;
                const int last = window(wx, s.width, &x0);
                const int64_t place = (clip * s.windows + wy * s.wide + wx) * FILTERS;
                const vec best = at(pooled + place), given = at(inner + place);
                bits open = best > zero;
                for (int y = 0; y < end - y0; y++)
                    for (int x = x0; x < last; x++) {
                        const int pixel = (y * s.width + x) * FILTERS;
                        const bits here = (at(own + pixel) == best) & open;
                        open &= ~here;
                        put(band + pixel, at(band + pixel) + where(here, given));
                    }
            }
            for (int y = y0; y < stop; y++) {
                const float *lines[9];
#pragma GCC unroll 9
                for (int line = 0; line < 9; line++)
                    lines[line] = p->padded + (line / 3) * s.plane + (y + line % 3) * s.row;
                for (int x = 0; x < s.width; x++) {
                    const vec d = at(band + ((y - y0) * s.width + x) * FILTERS);
#pragma GCC unroll 9
                    for (int line = 0; line < 9; line++) {
                        const float *from = lines[line] + x;
                        sum[3 * line] += d * from[0];
                        sum[3 * line + 1] += d * from[1];
                        sum[3 * line + 2] += d * from[2];
                    }
                    sum[TAPS] += d;
                }
            }
        }
        for (int tap = 0; tap <= TAPS; tap++)
            for (int c = 0; c < FILTERS; c++) gradients[tap * FILTERS + c] += sum[tap][c];
    }
}

/* Mean cross-entropy of a linear classifier, with class weights and label smoothing, and its gradients. */
static double classify(const float *embedded, int64_t clips, int64_t width, int64_t classes, const int64_t *labels,
                       const float *class_weights, double smoothing, const float *weight, const float *bias,
                       float *outer, double *weight_gradient, double *bias_gradient) {
    double total = 0, every = 0, loss = 0;
    memset(weight_gradient, 0, sizeof(double) * classes * width);
    memset(bias_gradient, 0, sizeof(double) * classes);
    for (int64_t c = 0; c < classes; c++) every += class_weights[c];
    for (int64_t clip = 0; clip < clips; clip++) total += class_weights[labels[clip]];
    for (int64_t clip = 0; clip < clips; clip++) {
        double scores[MOST_CLASSES], largest = -INFINITY, sum = 0;
        const float *own = embedded + clip * width;
        for (int64_t c = 0; c < classes; c++) {
            vec products = {0};
            for (int64_t d = 0; d < width; d += FILTERS) products += at(own + d) * at(weight + c * width + d);
            scores[c] = bias[c];
            for (int d = 0; d < FILTERS; d++) scores[c] += products[d];
            if (!(scores[c] <= largest)) largest = scores[c];
        }
        for (int64_t c = 0; c < classes; c++) sum += exp(scores[c] - largest);
        const double log_sum = largest + log(sum), own_share = (1 - smoothing) * class_weights[labels[clip]] / total;
        const double any_share = smoothing / (classes * total);
        float slopes[MOST_CLASSES];
        for (int64_t c = 0; c < classes; c++) {
            const double surprise = log_sum - scores[c], probability = exp(-surprise);
            loss += (own_share * (c == labels[clip]) + any_share * class_weights[c]) * surprise;
            slopes[c] = (float)(own_share * (probability - (c == labels[clip])) +
                                any_share * (probability * every - class_weights[c]));
            bias_gradient[c] += slopes[c];
        }
        for (int64_t d = 0; d < width; d += FILTERS) {
            vec given = {0};
            const vec value = at(own + d);
            for (int64_t c = 0; c < classes; c++) {
                given += slopes[c] * at(weight + c * width + d);
                const vec product = slopes[c] * value;
                for (int i = 0; i < FILTERS; i++) weight_gradient[c * width + d + i] += product[i];
            }
            put(outer + clip * width + d, given);
        }
    }
    return loss;
}

/* One epoch of training with Adam: all of its steps, network and classifier.
 *
 * `ends` says where in `rows` each batch ends. `parameters`, `first`, `second` and `rates` hold weights, both moments
 * and learning rates of (27 taps, bias, scale, offset) x filters, then of the classifier's weight and bias. `noise` has
 * whole words of eight bytes for each batch.
 */
void shallow_epoch(const float *media, double gain, const int64_t *rows, const int64_t *ends, int64_t steps,
                   int64_t height, int64_t width, int64_t padding, int64_t classes, float *parameters, float *first,
                   float *second, const double *rates, const double *factors, int64_t done, double decay,
                   int64_t decoupled, double epsilon, double momentum, const uint8_t *noise, int64_t threshold,
                   const int64_t *labels, const float *class_weights, double smoothing, float *running_mean,
                   float *running_variance, float *padded, float *responses, float *pooled, float *embedded,
                   float *outer, float *inner, float *band, double *gradients, double *losses) {
    const shape s = shape_of(height, width, padding);
    const int64_t length = FILTERS * s.cells, head = (TAPS + 3) * FILTERS, count = head + classes * (length + 1);
    float *scale = parameters + (TAPS + 1) * FILTERS, *weight = parameters + head, *bias = weight + classes * length;
    pass p = {.s = s, .media = media, .weight = parameters, .bias = parameters + TAPS * FILTERS, .scale = scale,
              .offset = scale + FILTERS, .gain = gain, .epsilon = epsilon, .height = height, .width = width,
              .padding = padding, .threshold = threshold, .noise = noise, .padded = padded, .responses = responses,
              .pooled = pooled, .embedded = embedded, .outer = outer, .inner = inner, .band = band};
    for (int64_t step = 0, start = 0; step < steps; start = ends[step], step++) {
        const int64_t clips = ends[step] - start, *own = rows + start;
        forward(&p, own, clips);
        losses[step] = classify(embedded, clips, length, classes, labels + start, class_weights, smoothing, weight, bias,
                                outer, gradients + head, gradients + head + classes * length);
        backward(&p, own, clips, gradients);
        if (p.noise) p.noise += (clips * s.windows * FILTERS + 7) / 8 * 8;
        const double seen = (double)clips * s.pixels;
        for (int c = 0; c < FILTERS; c++) {
            running_mean[c] += (float)momentum * ((float)p.mean[c] - running_mean[c]);
            running_variance[c] +=
                (float)momentum * ((float)(p.variance[c] * seen / (seen - 1)) - running_variance[c]);
        }
        const double now = (double)(done + step + 1), fall1 = 1 - pow(0.9, now), fall2 = sqrt(1 - pow(0.999, now));
        for (int64_t n = 0; n < count; n++) {
            const double rate = rates[n] * factors[step];
            float gradient = (float)gradients[n];
            if (decoupled)
                parameters[n] *= (float)(1 - rate * decay);
            else
                gradient += (float)decay * parameters[n];
            first[n] += 0.1f * (gradient - first[n]);
            second[n] = 0.999f * second[n] + 0.001f * gradient * gradient;
            parameters[n] -= (float)(rate / fall1) * first[n] / (sqrtf(second[n]) / (float)fall2 + 1e-8f);
        }
    }
}

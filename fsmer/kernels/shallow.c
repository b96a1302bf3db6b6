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

static inline int tap_offset(const shape *s, int tap) { return (tap / 9) * s->plane + (tap % 9 / 3) * s->row + tap % 3; }

/* One clip, (3, height, width), times `gain` with zeros around it; the zeros are there already. */
static void pad(const shape *s, const float *restrict from, int height, int width, int padding, double gain,
                float *restrict to) {
    for (int plane = 0; plane < 3; plane++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                to[plane * s->plane + (y + padding) * s->row + x + padding] =
                    (float)gain * from[(plane * height + y) * width + x];
}

/* Rectified responses in some rows of a padded clip; adds what they are above `pivot`, and its square.
 *
 * What is not a number stays so, for a training that has gone astray is to be seen.
 */
static void respond(const shape *s, const float *restrict clip, const float *restrict weight, vec bias, vec pivot,
                    int first, int end, float *restrict out, vec *restrict total, vec *restrict squares) {
    const vec zero = {0};
    vec sum_above = *total, sum_squares = *squares;
    for (int y = first; y < end; y++) {
        int x = 0;
        for (; x + BLOCK <= s->width; x += BLOCK) {
            const float *from = clip + y * s->row + x;
            vec sum[BLOCK];
#pragma GCC unroll 16
            for (int j = 0; j < BLOCK; j++) sum[j] = bias;
            for (int plane = 0; plane < 3; plane++) {
#pragma GCC unroll 9
                for (int tap = 0; tap < 9; tap++) {
                    const vec w = at(weight + (plane * 9 + tap) * FILTERS);
                    const float *patch = from + plane * s->plane + (tap / 3) * s->row + tap % 3;
#pragma GCC unroll 16
                    for (int j = 0; j < BLOCK; j++) sum[j] += w * patch[j];
                }
            }
            float *to = out + (y * s->width + x) * FILTERS;
#pragma GCC unroll 16
            for (int j = 0; j < BLOCK; j++) {
                const vec r = where(~(sum[j] <= zero), sum[j]), above = r - pivot;
                put(to + j * FILTERS, r);
                sum_above += above;
                sum_squares += above * above;
            }
        }
        for (; x < s->width; x++) {
            vec sum = bias;
            for (int tap = 0; tap < TAPS; tap++)
                sum += at(weight + tap * FILTERS) * clip[y * s->row + x + tap_offset(s, tap)];
            const vec r = where(~(sum <= zero), sum), above = r - pivot;
            put(out + (y * s->width + x) * FILTERS, r);
            sum_above += above;
            sum_squares += above * above;
        }
    }
    *total = sum_above;
    *squares = sum_squares;
}

/* Media of shape (N, 3, height, width), of which `rows` picks some, to embeddings; `padded` is room for one clip with
 * zeros around it.
 *
 * `noise` is a byte a pooled value, or null; a value is kept where its byte is not below `threshold`.
 */
static void forward(const float *media, const int64_t *rows, double gain, int64_t clips, int64_t height, int64_t width,
                    int64_t padding, float *padded, const float *weight, const float *bias, const float *scale,
                    const float *offset, double epsilon, const uint8_t *noise, int64_t threshold, float *responses,
                    float *pooled, double *mean, double *variance, float *embedded) {
    const shape s = shape_of(height, width, padding);
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
        pad(&s, media + rows[clip] * 3 * height * width, (int)height, (int)width, (int)padding, gain, padded);
        for (int wy = 0; wy < s.tall; wy++) {
            int y0, end = window(wy, s.height, &y0);
            /* The last windows may leave a row over, which counts for the statistics all the same. */
            respond(&s, padded, weight, at(bias), pivot, y0, wy + 1 < s.tall ? end : s.height, own,
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
    const float share = noise ? 0.25f * 256 / (256 - threshold) : 0.25f;
    const bits limit = (bits){0} + (int32_t)threshold;
    for (int64_t clip = 0; clip < clips; clip++)
        for (int cy = 0; cy < s.tall / 2; cy++)
            for (int cx = 0; cx < s.wide / 2; cx++) {
                vec sum = {0};
                for (int part = 0; part < 4; part++) {
                    const int64_t place = clip * s.windows + (2 * cy + part / 2) * s.wide + 2 * cx + part % 2;
                    const vec value = at(pooled + place * FILTERS) * slope + start;
                    bytes drawn = {0};
                    if (noise) memcpy(&drawn, noise + place * FILTERS, FILTERS);
                    sum += where(__builtin_convertvector(drawn, bits) >= limit, value);
                }
                for (int c = 0; c < FILTERS; c++)
                    embedded[(clip * FILTERS + c) * s.cells + cy * (s.wide / 2) + cx] = share * sum[c];
            }
}

/* Gradients from those of the embeddings; `gradients` is (27 taps, bias, scale, offset) x filters. */
static void backward(const float *media, const int64_t *rows, double gain, int64_t clips, int64_t height, int64_t
                     width, int64_t padding, float *padded, const float *scale, double epsilon, const uint8_t *noise,
                     int64_t threshold, const float *responses, const float *pooled, const double *mean, const double
                     *variance, const float *outer, float *inner, float *band, double *gradients) {
    const shape s = shape_of(height, width, padding);
    const float share = noise ? 0.25f * 256 / (256 - threshold) : 0.25f;
    const bits limit = (bits){0} + (int32_t)threshold;
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
                    given[c] = share * outer[(clip * FILTERS + c) * s.cells + cy * (s.wide / 2) + cx];
                for (int part = 0; part < 4; part++) {
                    const int64_t place = clip * s.windows + (2 * cy + part / 2) * s.wide + 2 * cx + part % 2;
                    bytes drawn = {0};
                    if (noise) memcpy(&drawn, noise + place * FILTERS, FILTERS);
                    const vec kept = where(__builtin_convertvector(drawn, bits) >= limit, given);
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
        pad(&s, media + rows[clip] * 3 * height * width, (int)height, (int)width, (int)padding, gain, padded);
        vec sum[TAPS + 1];
#pragma GCC unroll 28
        for (int tap = 0; tap <= TAPS; tap++) sum[tap] = zero;
        for (int wy = 0; wy < s.tall; wy++) {
            int y0, end = window(wy, s.height, &y0);
            const int stop = wy + 1 < s.tall ? end : s.height;
            const float *own = responses + (clip * s.pixels + y0 * s.width) * FILTERS;
            for (int p = 0; p < (stop - y0) * s.width; p++) {
                const vec v = at(own + p * FILTERS);
                put(band + p * FILTERS, where(v > zero, constant + slope * v));
            }
            for (int wx = 0; wx < s.wide; wx++) {
                int x0;
                const int last = window(wx, s.width, &x0);
                const int64_t place = (clip * s.windows + wy * s.wide + wx) * FILTERS;
                const vec best = at(pooled + place), given = at(inner + place);
                bits open = best > zero;
                for (int y = 0; y < end - y0; y++)
                    for (int x = x0; x < last; x++) {
                        const int p = (y * s.width + x) * FILTERS;
                        const bits here = (at(own + p) == best) & open;
                        open &= ~here;
                        put(band + p, at(band + p) + where(here, given));
                    }
            }
            for (int y = y0; y < stop; y++) {
                const float *lines[9];
#pragma GCC unroll 9
                for (int line = 0; line < 9; line++)
                    lines[line] = padded + (line / 3) * s.plane + (y + line % 3) * s.row;
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
    double mean[FILTERS], variance[FILTERS];
    for (int64_t step = 0, start = 0; step < steps; start = ends[step], step++) {
        const int64_t clips = ends[step] - start, *own = rows + start;
        forward(media, own, gain, clips, height, width, padding, padded, parameters,
                        parameters + TAPS * FILTERS, scale, scale + FILTERS, epsilon, noise, threshold, responses,
                        pooled, mean, variance, embedded);
        losses[step] = classify(embedded, clips, length, classes, labels + start, class_weights, smoothing, weight, bias,
                                outer, gradients + head, gradients + head + classes * length);
        backward(media, own, gain, clips, height, width, padding, padded, scale, epsilon, noise, threshold,
                         responses, pooled, mean, variance, outer, inner, band, gradients);
        if (noise) noise += (clips * s.windows * FILTERS + 7) / 8 * 8;
        const double seen = (double)clips * s.pixels;
        for (int c = 0; c < FILTERS; c++) {
            running_mean[c] += (float)momentum * ((float)mean[c] - running_mean[c]);
            running_variance[c] +=
                (float)momentum * ((float)(variance[c] * seen / (seen - 1)) - running_variance[c]);
        }
        const double now = (double)(done + step + 1), fall1 = 1 - pow(0.9, now), fall2 = sqrt(1 - pow(0.999, now));
        for (int64_t p = 0; p < count; p++) {
            const double rate = rates[p] * factors[step];
            float gradient = (float)gradients[p];
            if (decoupled)
                parameters[p] *= (float)(1 - rate * decay);
            else
                gradient += (float)decay * parameters[p];
            first[p] += 0.1f * (gradient - first[p]);
            second[p] = 0.999f * second[p] + 0.001f * gradient * gradient;
            parameters[p] -= (float)(rate / fall1) * first[p] / (sqrtf(second[p]) / (float)fall2 + 1e-8f);
        }
    }
}

/* Train one small image classifier from start to end: convolutions, the mean over positions, a linear layer.

   An MLP is the case of one position. See classifier_native.py for the arguments. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif
#include "conv_layer.h"

#define MOST_LAYERS 16
enum { SGD, ADAM, RMSPROP };
enum { DONE, NO_MEMORY, TOO_DEEP };

typedef struct {
    int layers, batch, classes;
    Layer layer[MOST_LAYERS];
    REAL *x, *pooled, *dpooled;
} Network;

/* -- the network --------------------------------------------------------------------------------------------------- */

/* logits of the images at x; ``key`` and ``threshold`` of dropout, threshold 0: none */
static void run(Network *n, int activation, const REAL *x, int images, uint32_t key, uint32_t threshold)
{
    const REAL *input = x;
    for (int i = 0; i < n->layers - 1; i++) {
        Layer *l = &n->layer[i];
        const int64_t positions = (int64_t)images * l->rows * l->columns;
        forward(l, input, positions);
        activate(activation, l->y, l->slope, positions * l->out_stored);
        if (threshold)
            drop(l, mixed(key + (uint32_t)i), threshold, positions);
        input = l->y;
    }
    const Layer *last = &n->layer[n->layers - 2];
    const int positions = last->rows * last->columns, stored = last->out_stored;
    for (int image = 0; image < images; image++)
        for (int j = 0; j < stored; j += LANES) {
            vec sum = all(0);
            for (int p = 0; p < positions; p++)
                sum += load(last->y + ((int64_t)image * positions + p) * stored + j);
            store(n->pooled + (int64_t)image * stored + j, sum / (REAL)positions);
        }
    forward(&n->layer[n->layers - 1], n->pooled, images);
}

/* cross-entropy of one image; logits become softmax */
static double cross_entropy(REAL *logits, int classes, int label)
{
    double most = logits[0], sum = 0;
    for (int c = 1; c < classes; c++)
        most = logits[c] > most ? logits[c] : most;
    double loss = most - logits[label];
    for (int c = 0; c < classes; c++)
        sum += logits[c] = EXPONENTIAL(logits[c] - (REAL)most);
    for (int c = 0; c < classes; c++)
        logits[c] /= (REAL)sum;
    return loss + log(sum);
}

/* gradients of the mean cross-entropy of the batch that was run */
static void backward(Network *n, const REAL *x, const int32_t *labels, int images)
{
    Layer *head = &n->layer[n->layers - 1], *last = head - 1;
    memset(head->dy, 0, sizeof(REAL) * (size_t)images * (size_t)head->out_stored);
    for (int image = 0; image < images; image++) {
        REAL *logits = head->y + (int64_t)image * head->out_stored, *dy = head->dy + (int64_t)image * head->out_stored;
        cross_entropy(logits, n->classes, labels[image]);
        for (int c = 0; c < n->classes; c++)
            dy[c] = (logits[c] - (c == labels[image])) / (REAL)images;
    }
    backward_weights(head, n->pooled, images);
    memset(n->dpooled, 0, sizeof(REAL) * (size_t)images * (size_t)head->in_stored);
    backward_input(head, n->dpooled, images);
    const int positions = last->rows * last->columns, stored = last->out_stored;
    for (int64_t p = 0; p < (int64_t)images * positions; p++)
        for (int j = 0; j < stored; j += LANES)
            store(last->dy + p * stored + j, load(n->dpooled + p / positions * stored + j) / (REAL)positions);
    for (int i = n->layers - 2; i >= 0; i--) {
        Layer *l = &n->layer[i];
        const int64_t count = (int64_t)images * l->rows * l->columns;
        for (int64_t k = 0; k < count * l->out_stored; k += LANES)
            store(l->dy + k, load(l->dy + k) * load(l->slope + k));
        backward_weights(l, i ? l[-1].y : x, count);
        if (i) {
            memset(l[-1].dy, 0, sizeof(REAL) * (size_t)(images * l->frame));
            backward_input(l, l[-1].dy, count);
        }
    }
}

/* one update of all layers; step counts from 1. L2 is a penalty l2 * |weights|^2 on the loss, biases are free of it */
static void update(Network *n, int optimizer, double rate, double l2, int64_t step)
{
    const REAL root = (REAL)sqrt(1 - pow(0.999, (double)step)), scale = (REAL)(rate / (1 - pow(0.9, (double)step)));
    for (int i = 0; i < n->layers; i++) {
        Layer *l = &n->layer[i];
        const int64_t weights = (int64_t)l->kernel * l->kernel * l->in_stored * l->out_stored;
        const int64_t count = weights + l->out_stored;
        REAL *restrict w = l->weight, *restrict g = l->gradient, *restrict m = l->mean, *restrict s = l->square;
        for (int64_t k = 0; k < weights; k++)
            g[k] += (REAL)(2 * l2) * w[k];
        if (optimizer == SGD)
            for (int64_t k = 0; k < count; k++)
                w[k] -= (REAL)rate * g[k];
        else if (optimizer == ADAM)
            for (int64_t k = 0; k < count; k++) {
                m[k] = (REAL)0.9 * m[k] + (REAL)0.1 * g[k];
                s[k] = (REAL)0.999 * s[k] + (REAL)0.001 * g[k] * g[k];
                w[k] -= scale * m[k] / (ROOT(s[k]) / root + (REAL)1e-7);
            }
        else
            for (int64_t k = 0; k < count; k++) {
                s[k] = (REAL)0.9 * s[k] + (REAL)0.1 * g[k] * g[k];
                w[k] -= (REAL)rate * g[k] / (ROOT(s[k]) + (REAL)1e-7);
            }
    }
}

/* accuracy and mean cross-entropy over the images of these numbers (NULL: the first ``count``) */
static void evaluate(Network *n, int activation, const REAL *images, const int32_t *labels, const int32_t *numbers,
                     int64_t count, double *accuracy, double *loss)
{
    Layer *head = &n->layer[n->layers - 1];
    const int64_t frame = n->layer[0].frame;
    int64_t right = 0;
    double sum = 0;
    for (int64_t start = 0; start < count; start += n->batch) {
        const int size = (int)(count - start < n->batch ? count - start : n->batch);
        for (int k = 0; k < size; k++)
            memcpy(n->x + k * frame, images + (numbers ? numbers[start + k] : start + k) * frame,
                   sizeof(REAL) * (size_t)frame);
        run(n, activation, n->x, size, 0, 0);
        for (int k = 0; k < size; k++) {
            REAL *logits = head->y + (int64_t)k * head->out_stored;
            const int label = labels[numbers ? numbers[start + k] : start + k];
            int best = 0;
            for (int c = 1; c < n->classes; c++)
                best = logits[c] > logits[best] ? c : best;
            right += best == label;
            sum += cross_entropy(logits, n->classes, label);
        }
    }
    *accuracy = (double)right / (double)count;
    *loss = sum / (double)count;
}

/* -- rows of a zoo: [out, in, kernel row, kernel column] and bias, layer by layer --------------------------------- */

static void copy_row(Network *n, REAL *row, int to_row)
{
    for (int i = 0; i < n->layers; i++) {
        Layer *l = &n->layer[i];
        const int taps = l->kernel * l->kernel;
        for (int o = 0; o < l->out; o++)
            for (int c = 0; c < l->in; c++)
                for (int tap = 0; tap < taps; tap++) {
                    REAL *mine = l->weight + ((int64_t)tap * l->in_stored + c) * l->out_stored + o, *theirs = row++;
                    *(to_row ? theirs : mine) = *(to_row ? mine : theirs);
                }
        REAL *bias = l->weight + (int64_t)taps * l->in_stored * l->out_stored;
        memcpy(to_row ? row : bias, to_row ? bias : row, sizeof(REAL) * (size_t)l->out);
        row += l->out;
    }
}

/* -- memory: one block, handed out in aligned pieces; a first pass with base NULL counts -------------------------- */

static char *piece(char *base, size_t *used, size_t bytes)
{
    char *start = base ? base + *used : NULL;
    *used += (bytes + BYTES - 1) / BYTES * BYTES;
    return start;
}

static size_t lay_out(Network *n, char *base)
{
    size_t used = 0, real = sizeof(REAL), batch = (size_t)n->batch;
    n->x = (REAL *)piece(base, &used, real * batch * (size_t)n->layer[0].frame);
    n->pooled = (REAL *)piece(base, &used, real * batch * (size_t)n->layer[n->layers - 1].in_stored);
    n->dpooled = (REAL *)piece(base, &used, real * batch * (size_t)n->layer[n->layers - 1].in_stored);
    for (int i = 0; i < n->layers; i++) {
        Layer *l = &n->layer[i];
        const size_t values = batch * (size_t)(l->rows * l->columns) * (size_t)l->out_stored;
        const size_t weights = (size_t)(l->kernel * l->kernel) * (size_t)l->in_stored * (size_t)l->out_stored;
        l->weight = (REAL *)piece(base, &used, real * (weights + (size_t)l->out_stored));
        l->gradient = (REAL *)piece(base, &used, real * (weights + (size_t)l->out_stored));
        l->mean = (REAL *)piece(base, &used, real * (weights + (size_t)l->out_stored));
        l->square = (REAL *)piece(base, &used, real * (weights + (size_t)l->out_stored));
        l->turned = (REAL *)piece(base, &used, real * weights);
        l->y = (REAL *)piece(base, &used, real * values);
        l->slope = (REAL *)piece(base, &used, real * values);
        l->dy = (REAL *)piece(base, &used, real * values);
        l->at = (int32_t *)piece(base, &used, sizeof(int32_t) * batch * (size_t)(l->rows * l->columns));
    }
    return used;
}

static void describe(Network *n, const int32_t *channels, int kernel, int stride, int height, int width)
{
    for (int i = 0; i < n->layers; i++) {
        Layer *l = &n->layer[i];
        const int head = i == n->layers - 1;
        l->in = channels[i];
        l->out = channels[i + 1];
        l->in_stored = i ? n->layer[i - 1].out_stored : l->in;
        l->out_stored = (l->out + LANES - 1) / LANES * LANES;
        l->kernel = head ? 1 : kernel;
        l->stride = head ? 1 : stride;
        const int rows = head ? 1 : i ? l[-1].rows : height, columns = head ? 1 : i ? l[-1].columns : width;
        l->width = columns;
        l->rows = (rows - l->kernel) / l->stride + 1;
        l->columns = (columns - l->kernel) / l->stride + 1;
        l->frame = (int64_t)rows * columns * l->in_stored;
    }
}

static void place(Network *n)
{
    for (int i = 0; i < n->layers; i++) {
        Layer *l = &n->layer[i];
        int32_t *at = l->at;
        for (int image = 0; image < n->batch; image++)
            for (int r = 0; r < l->rows; r++)
                for (int c = 0; c < l->columns; c++)
                    *at++ = (int32_t)(image * l->frame + (r * l->stride * l->width + c * l->stride) * l->in_stored);
    }
}

int classifier_train(const int32_t *shape, const int32_t *channels, const REAL *start, const REAL *images,
                     const int32_t *labels, const int32_t *used, int64_t count, const int32_t *order,
                     int64_t steps_per_epoch, const uint8_t *kept, const REAL *test_images, const int32_t *test_labels,
                     int64_t test_count, const double *settings, REAL *rows, double *measured)
{
    const int activation = shape[6], optimizer = shape[7];
    const int64_t epochs = shape[8];
    const uint32_t key = (uint32_t)shape[9], threshold = (uint32_t)shape[10];
    Network network = {.layers = shape[0], .batch = shape[1], .classes = channels[shape[0]]}, *n = &network;
    if (n->layers < 2 || n->layers > MOST_LAYERS)
        return TOO_DEEP;
    describe(n, channels, shape[2], shape[3], shape[4], shape[5]);
    const size_t bytes = lay_out(n, NULL);
    char *memory = aligned_alloc(BYTES, bytes);
    if (!memory)
        return NO_MEMORY;
    memset(memory, 0, bytes);
    lay_out(n, memory);
    place(n);
    copy_row(n, (REAL *)start, 0);
#ifdef __SSE__
    const unsigned int state = _mm_getcsr();
    _mm_setcsr(state | 0x8040); /* moments that fade out would end as denormals, which are slow */
#endif
    int64_t numel = 0;
    for (int i = 0; i < n->layers; i++)
        numel += (int64_t)n->layer[i].out * (n->layer[i].in * n->layer[i].kernel * n->layer[i].kernel + 1);
    int32_t batch_labels[n->batch];
    for (int64_t epoch = 0, step = 0; epoch <= epochs; epoch++) {
        if (kept[epoch]) {
            copy_row(n, rows, 1);
            rows += numel;
            evaluate(n, activation, images, labels, used, count, measured, measured + 1);
            evaluate(n, activation, test_images, test_labels, NULL, test_count, measured + 2, measured + 3);
            measured += 4;
            if (!isfinite(measured[-3] + measured[-1]))
                break; /* diverged: the caller's rows and measures stay NaN from the next on */
        }
        for (int64_t k = 0; k < steps_per_epoch && epoch < epochs; k++, step++) {
            for (int b = 0; b < n->batch; b++, order++) {
                memcpy(n->x + b * n->layer[0].frame, images + *order * n->layer[0].frame,
                       sizeof(REAL) * (size_t)n->layer[0].frame);
                batch_labels[b] = labels[*order];
            }
            run(n, activation, n->x, n->batch, mixed(key + (uint32_t)(step * n->layers)), threshold);
            backward(n, n->x, batch_labels, n->batch);
            update(n, optimizer, settings[0], settings[1], step + 1);
        }
    }
#ifdef __SSE__
    _mm_setcsr(state);
#endif
    free(memory);
    return DONE;
}

/* Attention in bfloat16 for processors with AVX-512 BF16: softmax(q k' / sqrt(d)) v over blocks of keys, with a running
 * maximum and sum (Dao et al. 2022, arXiv:2205.14135).
 *
 * Sixteen queries lie in the lanes of a vector; keys and channels are broadcast. So maxima and sums need no step across
 * lanes, channels no padding, and one small kernel, `multiply`, computes both products.
 */

#include <immintrin.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { VECTORS = 2, QUERIES = 16 * VECTORS, GROUP = 8, KEYS = 256, CHANNELS = 256 };

typedef uint16_t bf16;
typedef uint32_t pair; /* two bf16 that are multiplied and added up together */

typedef struct {
    bf16 *data;
    int64_t batch, head, row; /* strides, in elements; that of the channels is 1 */
} tensor;

/* Filled in by native.py, eight bytes to a field. */
typedef struct {
    tensor q, k, v, out;
    int64_t batches, heads, n, m, d;
} problem;

typedef struct {
    problem p;
    int64_t padded;      /* the keys of a head, rounded up to whole groups */
    pair *keys, *values; /* of all heads, in the order in which `multiply` reads them */
    atomic_long to_pack, packed, to_attend;
} work;

/* What is known of a block of queries. */
typedef struct {
    __m512i q[CHANNELS / 2 * VECTORS]; /* (d / 2, queries) pairs */
    bf16 room[QUERIES * CHANNELS];
    __m512 scores[KEYS][VECTORS]; /* then their exponentials, in half of the room */
    __m512 sums[CHANNELS][VECTORS];
    __m512 top[VECTORS], total[VECTORS], shrink[VECTORS];
} state;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t rounds(int64_t a, int64_t b) { return (a + b - 1) / b; }

static bf16 *row(const tensor *t, int64_t heads, int64_t head, int64_t index) {
    return t->data + head / heads * t->batch + head % heads * t->head + index * t->row;
}

/* sums (GROUP, queries) += a (steps, GROUP) pairs times b (steps, queries) pairs. */
static inline __attribute__((always_inline)) void multiply(const pair *a, const void *b, int64_t steps,
                                                           __m512 sums[GROUP][VECTORS]) {
    const __m512i *q = b;
    for (int64_t s = 0; s < steps; s++, a += GROUP, q += VECTORS)
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i]);
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)q[j], x);
        }
}

/* Rounds to bf16; those of a come first in the pairs. */
static inline __m512i join(__m512 a, __m512 b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* 2^x to 9e-5, a twentieth of what rounding to bf16 costs, and exact at integers, so that steps without a new maximum
 * shrink nothing: a polynomial for the fraction, the integer as exponent. */
static inline __m512 power(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(7.70672403e-2f), f, _mm512_set1_ps(2.27644978e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.95116631e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1));
    return _mm512_scalef_ps(y, x);
}

/* Scores of the queries and `count` keys, and the maximum. */
static void score(state *s, const pair *keys, int64_t count, int64_t d) {
    for (int i = 0; i < VECTORS; i++) s->shrink[i] = s->top[i];
    for (int64_t k = 0; k < count; k += GROUP) {
        __m512 r[GROUP][VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++) r[i][j] = _mm512_set1_ps(k + i < count ? 0 : -INFINITY);
        multiply(keys + k * d / 2, s->q, d / 2, r);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++) {
                s->scores[k + i][j] = r[i][j];
                s->top[j] = _mm512_max_ps(s->top[j], r[i][j]);
            }
    }
}

/* Scores to exponentials over that of the maximum. */
static void exponentiate(state *s, int64_t count, float scale) {
    const __m512 c = _mm512_set1_ps(scale);
    __m512i *out = (__m512i *)s->scores;
    for (int j = 0; j < VECTORS; j++) {
        const __m512 top = _mm512_mul_ps(s->top[j], c);
        s->shrink[j] = power(_mm512_mul_ps(_mm512_sub_ps(s->shrink[j], s->top[j]), c));
        __m512 total = _mm512_mul_ps(s->total[j], s->shrink[j]);
        for (int64_t k = 0; k < count; k += 2) {
            const __m512 a = power(_mm512_fmsub_ps(s->scores[k][j], c, top));
            const __m512 b = power(_mm512_fmsub_ps(s->scores[k + 1][j], c, top));
            out[k / 2 * VECTORS + j] = join(a, b);
            total = _mm512_dpbf16_ps(total, (__m512bh)out[k / 2 * VECTORS + j], (__m512bh)_mm512_set1_epi32(0x3f803f80));
        }
        s->total[j] = total;
    }
}

/* Adds the values, weighted with the exponentials, to the sums. */
static void mix(state *s, const pair *values, int64_t count, int64_t d) {
    for (int64_t c = 0; c < d; c += GROUP) {
        __m512 r[GROUP][VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++) r[i][j] = _mm512_mul_ps(s->sums[c + i][j], s->shrink[j]);
        multiply(values + c * count / 2, s->scores, count / 2, r);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
#pragma GCC unroll 2
            for (int j = 0; j < VECTORS; j++) s->sums[c + i][j] = r[i][j];
    }
}

/* Four rows of four pairs; strides in bf16. */
static inline void transpose4(const bf16 *in, int64_t in_stride, bf16 *out, int64_t out_stride) {
    __m128i r[4], t[4];
    for (int i = 0; i < 4; i++) r[i] = _mm_loadu_si128((const void *)(in + i * in_stride));
    for (int i = 0; i < 2; i++) {
        t[i] = _mm_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[i + 2] = _mm_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        _mm_storeu_si128((void *)(out + 2 * i * out_stride), _mm_unpacklo_epi64(t[2 * i], t[2 * i + 1]));
        _mm_storeu_si128((void *)(out + (2 * i + 1) * out_stride), _mm_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
    }
}

/* in (a, b) pairs -> out (b, a) pairs, both a and b multiples of 4. */
static void transpose(const bf16 *in, int64_t in_stride, bf16 *out, int64_t out_stride, int64_t a, int64_t b) {
    for (int64_t i = 0; i < a; i += 4)
        for (int64_t j = 0; j < b; j += 4)
            transpose4(in + i * in_stride + 2 * j, in_stride, out + j * out_stride + 2 * i, out_stride);
}

/* `count` rows followed by zeros up to `wanted`: in place if there are enough, else a copy in `room`. */
static tensor whole(const tensor *t, const bf16 *from, int64_t count, int64_t wanted, int64_t d, bf16 *room) {
    if (count >= wanted) return (tensor){(bf16 *)from, 0, 0, t->row};
    memset(room, 0, (size_t)(wanted * d) * sizeof *room);
    for (int64_t i = 0; i < count; i++) memcpy(room + i * d, from + i * t->row, (size_t)d * sizeof *room);
    return (tensor){room, 0, 0, d};
}

/* Keys as (keys / GROUP, d / 2, GROUP) pairs of channels; values as (d / GROUP, keys / 2, GROUP) pairs of keys. */
static void pack(const work *w, int64_t head, int64_t first) {
    const problem *p = &w->p;
    const int64_t d = p->d, last = least(first + KEYS, w->padded), place = (head * w->padded + first) * d / 2;
    bf16 room[GROUP * CHANNELS];
    for (int64_t i = first; i < last; i += GROUP) {
        const int64_t count = least(GROUP, p->m - i);
        tensor k = whole(&p->k, row(&p->k, p->heads, head, i), count, GROUP, d, room);
        transpose(k.data, k.row, (bf16 *)(w->keys + place + (i - first) * d / 2), 2 * GROUP, GROUP, d / 2);
        tensor v = whole(&p->v, row(&p->v, p->heads, head, i), count, GROUP, d, room);
        for (int64_t c = 0; c < d; c += GROUP)
            for (int64_t j = 0; j < GROUP; j += 2) {
                pair *out = w->values + place + c * (last - first) / 2 + (i - first + j) / 2 * GROUP;
                const __m128i a = _mm_loadu_si128((const void *)(v.data + j * v.row + c));
                const __m128i b = _mm_loadu_si128((const void *)(v.data + (j + 1) * v.row + c));
                _mm_storeu_si128((void *)out, _mm_unpacklo_epi16(a, b));
                _mm_storeu_si128((void *)(out + GROUP / 2), _mm_unpackhi_epi16(a, b));
            }
    }
}

/* Sums over totals, to the result. */
static void finish(state *s, bf16 *out, int64_t stride, int64_t count, int64_t d) {
    __m512i *q = (__m512i *)s->q; /* no longer needed */
    for (int j = 0; j < VECTORS; j++) {
        const __m512 c = _mm512_div_ps(_mm512_set1_ps(1), s->total[j]);
        for (int64_t i = 0; i < d; i += 2)
            q[i / 2 * VECTORS + j] = join(_mm512_mul_ps(s->sums[i][j], c), _mm512_mul_ps(s->sums[i + 1][j], c));
    }
    if (count == QUERIES) return transpose((bf16 *)s->q, 2 * QUERIES, out, stride, d / 2, QUERIES);
    transpose((bf16 *)s->q, 2 * QUERIES, s->room, d, d / 2, QUERIES);
    for (int64_t i = 0; i < count; i++) memcpy(out + i * stride, s->room + i * d, (size_t)d * sizeof *out);
}

static void attend(const work *w, state *s, int64_t head, int64_t first) {
    const problem *p = &w->p;
    const int64_t d = p->d, count = least(QUERIES, p->n - first);
    const tensor q = whole(&p->q, row(&p->q, p->heads, head, first), count, QUERIES, d, s->room);
    transpose(q.data, q.row, (bf16 *)s->q, 2 * QUERIES, QUERIES, d / 2);
    memset(s->sums, 0, (size_t)d * sizeof *s->sums);
    for (int j = 0; j < VECTORS; j++) s->top[j] = _mm512_set1_ps(-INFINITY), s->total[j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p->m; k += KEYS) {
        const int64_t place = (head * w->padded + k) * d / 2, padded = least(KEYS, w->padded - k);
        score(s, w->keys + place, least(KEYS, p->m - k), d);
        exponentiate(s, padded, 1.44269504f / sqrtf((float)d)); /* log2(e) */
        mix(s, w->values + place, padded, d);
    }
    finish(s, row(&p->out, p->heads, head, first), p->out.row, count, d);
}

/* What each thread does. */
static void take_part(void *argument) {
    work *w = argument;
    const int64_t heads = w->p.batches * w->p.heads;
    const int64_t blocks = rounds(w->p.m, KEYS), queries = rounds(w->p.n, QUERIES);
    int64_t i;
    state s;
    while ((i = atomic_fetch_add(&w->to_pack, 1)) < heads * blocks) {
        pack(w, i / blocks, i % blocks * KEYS);
        atomic_fetch_add(&w->packed, 1);
    }
    while (atomic_load(&w->packed) < heads * blocks) sched_yield();
    while ((i = atomic_fetch_add(&w->to_attend, 1)) < heads * queries) attend(w, &s, i / queries, i % queries * QUERIES);
}

/* `parallel` is OpenMP's GOMP_parallel of the runtime that torch uses, so that there is but one team of threads.
 * Returns whether there was enough memory. */
int attention(const problem *p, void (*parallel)(void (*)(void *), void *, unsigned, unsigned), unsigned threads) {
    work w = {.p = *p, .padded = rounds(p->m, GROUP) * GROUP};
    const size_t size = (size_t)(p->batches * p->heads * w.padded * p->d / 2) * sizeof(pair);
    w.keys = malloc(2 * size);
    if (!w.keys) return 0;
    w.values = w.keys + size / sizeof(pair);
    if (threads > 1)
        parallel(take_part, &w, threads, 0);
    else
        take_part(&w);
    free(w.keys);
    return 1;
}

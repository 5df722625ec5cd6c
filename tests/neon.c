/* The NEON kernels against the scalar ones, bit by bit, for a machine that has neither Python nor
 * NumPy for ARM64: .ci/run compiles it with a cross compiler and runs it under emulation. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { LENGTH = 70, COLUMNS = 8, ROUNDS = 4000 };

static unsigned long long state = 88172645463325252ull;
static int differences;

static unsigned long long next(void) /* xorshift64 */
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static double number(void)
{
    return (double)(long long)next() / 9e18;
}

static void compare(const char *what, const void *a, const void *b, size_t size)
{
    if (memcmp(a, b, size) != 0) {
        differences++;
        printf("%s differs\n", what);
    }
}

typedef struct {
    const char *name;
    size_t size;
    wf_apply_kernel *scalar, *neon;
    wf_moves_kernel *scalar_moves, *neon_moves;
} apply_case;

static void fill(void *column, size_t size, unsigned half_mask)
{
    for (int i = 0; i < LENGTH; i++) {
        const double value = number() * pow(10, (int)(next() % 5) - 3);
        if (size == 8) {
            ((double *)column)[i] = value;
        } else if (size == 4) {
            ((float *)column)[i] = (float)value;
        } else {
            ((unsigned short *)column)[i] = (unsigned short)(next() & half_mask);
        }
    }
}

static void check_apply(const apply_case *c, unsigned half_mask)
{
    static double x[COLUMNS][LENGTH], a[COLUMNS][LENGTH], b[COLUMNS][LENGTH];
    static double coef_f64[COLUMNS * COLUMNS], bias_f64[COLUMNS];
    static float coef_f32[COLUMNS * COLUMNS], bias_f32[COLUMNS];
    const void *inputs[COLUMNS];
    void *out_a[COLUMNS], *out_b[COLUMNS];
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    for (int k = 0; k < COLUMNS; k++) {
        fill(x[k], c->size, half_mask);
        inputs[k] = x[k];
        out_a[k] = a[k];
        out_b[k] = b[k];
        bias_f32[k] = (float)(bias_f64[k] = number());
    }
    for (int k = 0; k < COLUMNS * COLUMNS; k++) {
        coef_f32[k] = (float)(coef_f64[k] = 2 * number());
    }
    const int wide = c->size == 8, stream = (int)(next() % 2);
    const void *coef = wide ? (void *)coef_f64 : (void *)coef_f32;
    const void *bias = wide ? (void *)bias_f64 : (void *)bias_f32;
    const ptrdiff_t n = (ptrdiff_t)(next() % LENGTH), p = 1 + (ptrdiff_t)(next() % 6),
                    m = 1 + (ptrdiff_t)(next() % 6);
    wf_finite finite_a = {1, 0}, finite_b = {1, 0};
    c->scalar(n, p, inputs, m, coef, bias, out_a, stream, &finite_a);
    c->neon(n, p, inputs, m, coef, bias, out_b, stream, &finite_b);
    compare(c->name, a, b, sizeof a);
    if (!finite_a.bad != !finite_b.bad) {
        differences++;
        printf("%s: one of them saw a value that is not finite\n", c->name);
    }
    double sums_a[2], sums_b[2];
    c->scalar_moves(n, p, inputs, coef, bias, a, 0, &finite_a, sums_a);
    c->neon_moves(n, p, inputs, coef, bias, b, 0, &finite_b, sums_b);
    compare(c->name, a, b, sizeof a);
    compare(c->name, sums_a, sums_b, sizeof sums_a);
}

static void check_blend(void)
{
    static float f32[2][3][LENGTH];
    static double f64[2][3][LENGTH];
    const float c[2] = {(float)number(), (float)number()};
    const double wide[2] = {c[0], c[1]};
    const ptrdiff_t count = (ptrdiff_t)(next() % LENGTH);
    for (int j = 0; j < 3; j++) {
        for (int i = 0; i < LENGTH; i++) {
            f64[0][j][i] = f64[1][j][i] = number();
            f32[0][j][i] = f32[1][j][i] = (float)number();
        }
    }
    for (int set = 0; set < 2; set++) {
        const wf_kernels *kernels = set ? &wf_kernels_neon : &wf_kernels_scalar;
        float *const single[2] = {f32[set][1], f32[set][2]};
        double *const both[2] = {f64[set][1], f64[set][2]};
        kernels->blend_f32(count, f32[set][0], 2, c, single);
        kernels->blend_f64(count, f64[set][0], 2, wide, both);
    }
    compare("blend_f32", f32[0], f32[1], sizeof f32[0]);
    compare("blend_f64", f64[0], f64[1], sizeof f64[0]);
}

static void check_conversions(unsigned short first)
{
    const wf_kernels *s = &wf_kernels_scalar, *n = &wf_kernels_neon;
    unsigned short half[LENGTH], half_a[LENGTH] = {0}, half_b[LENGTH] = {0};
    float single[LENGTH], single_a[LENGTH] = {0}, single_b[LENGTH] = {0};
    double double_a[LENGTH] = {0}, double_b[LENGTH] = {0};
    const ptrdiff_t count = (ptrdiff_t)(next() % LENGTH);
    for (int i = 0; i < LENGTH; i++) {
        half[i] = (unsigned short)(first + i);
        unsigned bits = (unsigned)next();
        if (next() % 2) { /* of the sizes that a half can hold */
            bits = (bits & 0x80ffffffu) | ((unsigned)(100 + next() % 50) << 23);
        }
        memcpy(&single[i], &bits, sizeof bits);
    }
    s->widen_f16(count, half, single_a);
    n->widen_f16(count, half, single_b);
    compare("widen_f16", single_a, single_b, sizeof single_a);
    s->widen_bf16(count, half, single_a);
    n->widen_bf16(count, half, single_b);
    compare("widen_bf16", single_a, single_b, sizeof single_a);
    s->narrow_f16(count, single, half_a);
    n->narrow_f16(count, single, half_b);
    compare("narrow_f16", half_a, half_b, sizeof half_a);
    s->narrow_bf16(count, single, half_a);
    n->narrow_bf16(count, single, half_b);
    compare("narrow_bf16", half_a, half_b, sizeof half_a);
    s->widen_f32(count, single, double_a);
    n->widen_f32(count, single, double_b);
    compare("widen_f32", double_a, double_b, sizeof double_a);
}

int main(void)
{
    const wf_kernels *s = &wf_kernels_scalar, *n = &wf_kernels_neon;
    const apply_case cases[] = {
        {"apply_f64", 8, s->apply_f64, n->apply_f64, s->moves_f64, n->moves_f64},
        {"apply_f32", 4, s->apply_f32, n->apply_f32, s->moves_f32, n->moves_f32},
        {"apply_f16", 2, s->apply_f16, n->apply_f16, s->moves_f16, n->moves_f16},
        {"apply_bf16", 2, s->apply_bf16, n->apply_bf16, s->moves_bf16, n->moves_bf16},
    };
    for (int round = 0; round < ROUNDS; round++) {
        check_apply(&cases[round % 4], round % 4 == 2 ? 0xbbffu : 0xbfffu); /* finite halves */
    }
    for (int first = 0; first < 0x10000; first += 7) {
        check_conversions((unsigned short)first);
        check_blend();
    }
    printf("NEON against scalar: %d differences\n", differences);
    return differences != 0;
}

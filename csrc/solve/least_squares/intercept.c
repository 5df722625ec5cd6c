/* mean y - mean x'coef. Its terms may be many times its size, and residuals were taken without it:
 * so it is summed with the rounding of every product and sum (T. Ogita, S. M. Rump, S. Oishi,
 * Accurate Sum and Dot Product, 2005, doi:10.1137/030601818). */
#include "solve/least_squares/intercept.h"

#include <math.h>

#include "solve/least_squares/state.h"

static double intercept_of(const wf_least_squares *s, ptrdiff_t p, const double *coef, ptrdiff_t j)
{
    double sum = s->shift[p + j], rest = s->mean[p + j];
    for (ptrdiff_t k = 0; k < p; k++) {
        const double terms[] = {s->shift[k], s->mean[k]};
        for (int t = 0; t < 2; t++) {
            const double product = -coef[k] * terms[t], low = fma(-coef[k], terms[t], -product);
            const double next = sum + product, back = next - sum;
            rest += (sum - (next - back)) + (product - back) + low;
            sum = next;
        }
    }
    return sum + rest;
}

void wf_least_squares_set_intercept(wf_fit *fit)
{
    const ptrdiff_t p = fit->options.p;
    for (ptrdiff_t j = 0; j < fit->options.m && fit->options.fit_intercept; j++) {
        fit->intercept[j] = intercept_of(fit->solver, p, fit->coef + j * p, j);
    }
}

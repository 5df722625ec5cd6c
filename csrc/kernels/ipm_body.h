/* The row loops of the interior point method (solve/ipm.c, where the formulas come from), written
 * as plain loops over independent rows, which the compiler turns into vectors. */

/* What both directions need of a row, from the current point. */
typedef struct {
    double kp, km; /* mu/sp - rp, mu/sm - rm */
    double alpha, gamma, w;
} ipm_terms;

static inline __attribute__((always_inline)) ipm_terms
ipm_terms_of(double rp, double rm, double sp, double sm, double extra_p, double extra_m)
{
    const double ip = 1 / sp, im = 1 / sm;
    ipm_terms r;
    r.alpha = rp * ip;
    r.gamma = rm * im;
    r.w = 1 / (r.alpha + r.gamma);
    r.kp = extra_p * ip - rp;
    r.km = extra_m * im - rm;
    return r;
}

static void ipm_weights(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, double target,
                        int corrected, double *restrict w, double *restrict e)
{
    const double *rp = rows->rp + at, *rm = rows->rm + at, *sp = rows->sp + at, *sm = rows->sm + at;
    const double *rho = rows->rho + at, *cp = rows->drp + at, *cm = rows->drm + at;
    if (corrected) {
        for (ptrdiff_t i = 0; i < n; i++) {
            const ipm_terms r =
                ipm_terms_of(rp[i], rm[i], sp[i], sm[i], target - cp[i], target - cm[i]);
            w[i] = r.w;
            e[i] = (r.kp - r.km + rho[i]) * r.w;
        }
    } else {
        for (ptrdiff_t i = 0; i < n; i++) {
            const ipm_terms r = ipm_terms_of(rp[i], rm[i], sp[i], sm[i], 0, 0);
            w[i] = r.w;
            e[i] = (r.kp - r.km + rho[i]) * r.w;
        }
    }
}

/* The larger of two, the second where the first is NaN. */
static inline double larger(double a, double b)
{
    return a > b ? a : b;
}

static double largest(ptrdiff_t n, const double *x)
{
    double lane[WF_LANES] = {0};
    ptrdiff_t i = 0;
    for (; i + WF_LANES <= n; i += WF_LANES) {
        for (int l = 0; l < WF_LANES; l++) {
            lane[l] = larger(x[i + l], lane[l]);
        }
    }
    double all = 0;
    for (; i < n; i++) {
        all = larger(x[i], all);
    }
    for (int l = 0; l < WF_LANES; l++) {
        all = larger(lane[l], all);
    }
    return all;
}

static inline __attribute__((always_inline)) void
ipm_direction_of(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, const double *restrict t,
                 const double *restrict dlambda, double target, int corrected,
                 wf_ipm_direction *direction)
{
    const double *restrict rp = rows->rp + at, *restrict rm = rows->rm + at;
    const double *restrict sp = rows->sp + at, *restrict sm = rows->sm + at;
    const double *restrict rho = rows->rho + at;
    double *restrict da = rows->da + at, *restrict drp = rows->drp + at,
                     *restrict drm = rows->drm + at;
    double decrease[4][WF_IPM_CHUNK], sums[3][WF_IPM_CHUNK];
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        const ipm_terms r =
            ipm_terms_of(rp[i], rm[i], sp[i], sm[i], corrected ? target - drp[i] : 0,
                         corrected ? target - drm[i] : 0);
        const double change =
            r.w * (t[i] - (r.kp - r.km) - rho[i] + (r.alpha - r.gamma) * dlambda[i]);
        const double dsp = dlambda[i] - change, dsm = dlambda[i] + change;
        const double dp = r.kp - r.alpha * dsp, dm = r.km - r.gamma * dsm;
        decrease[0][i] = -dp / rp[i];
        decrease[1][i] = -dm / rm[i];
        decrease[2][i] = -dsp / sp[i];
        decrease[3][i] = -dsm / sm[i];
        const double product_p = dp * dsp, product_m = dm * dsm;
        sums[0][i] = rp[i] * dsp + rm[i] * dsm;
        sums[1][i] = sp[i] * dp + sm[i] * dm;
        sums[2][i] = product_p + product_m;
        da[i] = change;
        drp[i] = corrected ? dp : product_p;
        drm[i] = corrected ? dm : product_m;
    }
    for (int k = 0; k < 2; k++) {
        direction->primal = larger(largest(n, decrease[k]), direction->primal);
        direction->dual = larger(largest(n, decrease[2 + k]), direction->dual);
    }
    for (int k = 0; k < 3; k++) {
        direction->sums[k] += sum(n, sums[k]);
    }
}

static void ipm_direction(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, const double *t,
                          const double *dlambda, double target, int corrected,
                          wf_ipm_direction *direction)
{
    if (corrected) {
        ipm_direction_of(n, rows, at, t, dlambda, target, 1, direction);
    } else {
        ipm_direction_of(n, rows, at, t, dlambda, 0, 0, direction);
    }
}

static void ipm_move(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at,
                     const double *restrict dlambda, double primal, double dual)
{
    double *restrict rp = rows->rp + at, *restrict rm = rows->rm + at;
    double *restrict sp = rows->sp + at, *restrict sm = rows->sm + at;
    const double *restrict da = rows->da + at, *restrict drp = rows->drp + at,
                           *restrict drm = rows->drm + at;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        rp[i] += primal * drp[i];
        rm[i] += primal * drm[i];
        sp[i] += dual * (dlambda[i] - da[i]);
        sm[i] += dual * (dlambda[i] + da[i]);
    }
}

/* The row loops of the interior point method, written as plain loops over independent rows, which
 * the compiler turns into vectors. Formulas and notation are those of solve/ipm/newton.c. */

/* The larger of two, the second where the first is NaN. */
static inline double larger(double a, double b)
{
    return a > b ? a : b;
}

static inline double smaller(double a, double b)
{
    return a < b ? a : b;
}

/* With D = rp sm + rm sp the weight 1 / (rp / sp + rm / sm) is sp sm / D, and there is one division
 * to make. Divisions are what these loops wait for. */
static inline __attribute__((always_inline)) void
ipm_weights_of(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, double target, int corrected,
               double *restrict w, double *restrict e)
{
    const double *rp = rows->rp + at, *rm = rows->rm + at, *sp = rows->sp + at, *sm = rows->sm + at;
    const double *rho = rows->rho + at, *cp = rows->drp + at, *cm = rows->drm + at;
    const double *weight = rows->weight + at;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double both = sp[i] * sm[i], inverse = 1 / (rp[i] * sm[i] + rm[i] * sp[i]);
        const double mu = target * weight[i];
        const double more = corrected ? (mu - cp[i]) * sm[i] - (mu - cm[i]) * sp[i] : 0;
        w[i] = both * inverse;
        e[i] = ((rho[i] - rp[i] + rm[i]) * both + more) * inverse;
    }
}

static void ipm_weights(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, double target,
                        int corrected, double *w, double *e)
{
    if (corrected) {
        ipm_weights_of(n, rows, at, target, 1, w, e);
    } else {
        ipm_weights_of(n, rows, at, 0, 0, w, e);
    }
}

static double largest(ptrdiff_t n, const double *x)
{
    double running[WF_RUNNING_SUMS] = {0};
    ptrdiff_t i = 0;
    for (; i + WF_RUNNING_SUMS <= n; i += WF_RUNNING_SUMS) {
        for (int l = 0; l < WF_RUNNING_SUMS; l++) {
            running[l] = larger(x[i + l], running[l]);
        }
    }
    double all = 0;
    for (; i < n; i++) {
        all = larger(x[i], all);
    }
    for (int l = 0; l < WF_RUNNING_SUMS; l++) {
        all = larger(running[l], all);
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
    const double *restrict rho = rows->rho + at, *restrict weight = rows->weight + at;
    double *restrict da = rows->da + at, *restrict drp = rows->drp + at,
                     *restrict drm = rows->drm + at;
    double primal[WF_IPM_CHUNK], dual[WF_IPM_CHUNK], sums[3][WF_IPM_CHUNK];
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        const double both = sp[i] * sm[i], inverse = 1 / both;
        const double ip = sm[i] * inverse, im = sp[i] * inverse;
        const double kp = corrected ? target * weight[i] - drp[i] : 0;
        const double km = corrected ? target * weight[i] - drm[i] : 0;
        const double change = ((t[i] - rho[i] + rp[i] - rm[i]) * both - (kp * sm[i] - km * sp[i]) +
                               (rp[i] * sm[i] - rm[i] * sp[i]) * dlambda[i]) /
                              (rp[i] * sm[i] + rm[i] * sp[i]);
        const double dsp = dlambda[i] - change, dsm = dlambda[i] + change;
        const double dp = (kp - rp[i] * dsp) * ip - rp[i], dm = (km - rm[i] * dsm) * im - rm[i];
        const double product_p = dp * dsp, product_m = dm * dsm;
        const double across = corrected ? 1 / (rp[i] * rm[i]) : 0;
        primal[i] = corrected ? larger(-dp * rm[i] * across, -dm * rp[i] * across)
                              : 1 + larger(dsp * ip, dsm * im);
        dual[i] = larger(-dsp * ip, -dsm * im);
        sums[0][i] = rp[i] * dsp + rm[i] * dsm;
        sums[1][i] = sp[i] * dp + sm[i] * dm;
        sums[2][i] = product_p + product_m;
        da[i] = change;
        drp[i] = corrected ? dp : product_p;
        drm[i] = corrected ? dm : product_m;
    }
    direction->primal = larger(largest(n, primal), direction->primal);
    direction->dual = larger(largest(n, dual), direction->dual);
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

/* A product that has fallen below `least` of its share of mu would have its row leap from bound to
 * bound: rp and rm rise together, as only their difference is bound, to no more than that share on
 * the other side. */
static void ipm_move(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at,
                     const double *restrict dlambda, double primal, double dual, double mu,
                     double least)
{
    double *restrict rp = rows->rp + at, *restrict rm = rows->rm + at;
    double *restrict sp = rows->sp + at, *restrict sm = rows->sm + at;
    const double *restrict da = rows->da + at, *restrict drp = rows->drp + at,
                           *restrict drm = rows->drm + at, *restrict weight = rows->weight + at;
    INDEPENDENT
    for (ptrdiff_t i = 0; i < n; i++) {
        const double up = rp[i] + primal * drp[i], um = rm[i] + primal * drm[i];
        const double vp = sp[i] + dual * (dlambda[i] - da[i]);
        const double vm = sm[i] + dual * (dlambda[i] + da[i]);
        const double inverse = mu * weight[i] / (vp * vm);
        const double wp = vm * inverse, wm = vp * inverse; /* of rp and rm on the central path */
        const double missing = larger(least * wp - up, least * wm - um);
        const double rise = larger(smaller(missing, smaller(wp, wm)), 0);
        rp[i] = up + rise;
        rm[i] = um + rise;
        sp[i] = vp;
        sm[i] = vm;
    }
}

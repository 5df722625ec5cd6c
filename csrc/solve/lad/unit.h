/* What an absolute_error fit holds: its units, their bands, its sample.
 *
 * Notation, as in all of this folder: p inputs, m targets, q = p + 1 columns [x, 1] with an
 * intercept, else p; N rows in S trajectories (groups). b holds p + 1 numbers, the coefficients and
 * the intercept; r = y - [x, 1]'b is a residual, u = L [x, 1] a whitened row (whiten.h), h = |u|
 * its size. A unit is a problem that shares no unknown with another: one target, or the last two,
 * which the hinge couples; each of its targets is a part. Values are N m F, sums over rows. */
#ifndef WF_SOLVE_LAD_UNIT_H
#define WF_SOLVE_LAD_UNIT_H

#include "solve/method.h"
#include "solve/scan.h"

enum {
    /* Rows outside the sample's span that a lane keeps. A pass that finds some is made again, with
     * at least one direction more; so many rows, from every lane, seldom leave any for a third. */
    WF_LAD_STRAYS = 8,
    /* Of the solvers that run at a time, and the most of one band. The interior point method takes
     * 10 numbers for a row beside the row itself: 80 MiB. */
    WF_LAD_SOLVER_ROWS = 1 << 20,
    /* Of all bands of a pass. With the solver and the sample this bounds the memory of a fit,
     * whatever N is. */
    WF_LAD_KEPT_BYTES = 128 << 20
};

/* Rows of one unit that have a sign of their own: part 0, part 1, or the difference of both, which
 * is the hinge's. */
enum { WF_LAD_KINDS = 3, WF_LAD_DIFFERENCE = 2 };

/* Rows of unmoved weights may be a large share of all, with residuals that vanish together. In the
 * band they are summed up by cells of similar weights, |sum r_i| <= sum |r_i| keeping the bound;
 * cells in which signs differ are found out and kept row by row in the next pass. 1024 cells are
 * few beside the rows that they stand for (wf_use_cells), and many beside q. */
enum {
    WF_LAD_CELLS = 1024,
    WF_LAD_CELL_EXTRA = 3 /* beside the row: sums of r and of |r|, count */
};

/* What one lane gathers of one kind of rows in one pass. */
typedef struct {
    ptrdiff_t n, capacity;
    double *kept;      /* n x (rank + 1): whitened row, residual */
    int32_t *group;    /* n: of kept difference rows */
    int spilled;       /* rows of the band did not fit and were taken by their sign */
    ptrdiff_t in_band; /* rows of the band, kept or not */
    double *cell;      /* WF_LAD_CELLS x (rank + WF_LAD_CELL_EXTRA), or NULL */
    double dropped;    /* sum of |r| over dropped rows */
    double *g;         /* rank: - sum of sign(r) u over dropped rows; n_groups x rank of difference
                        * rows, by hinge */
    double *total;     /* n_groups: sum of |r| over dropped difference rows */
    double *size;      /* n_groups: sum of h over all difference rows */
    double *whole;     /* n_groups: sum of |r| over all difference rows */
} wf_band;

typedef enum { WF_UNIT_WAITING, WF_UNIT_ACTIVE, WF_UNIT_DONE } wf_unit_state;

typedef struct {
    wf_unit_state state;
    int parts;                  /* 1, or 2 with the hinge on their difference */
    ptrdiff_t target;           /* of part 0; part 1 is the next */
    double *centre;             /* parts x (p + 1) */
    double *best;               /* parts x (p + 1): of the least value known */
    double value;               /* at best */
    double bound;               /* largest known lower bound on it */
    double noise;               /* what double precision can tell apart in it */
    double kappa[WF_LAD_KINDS]; /* width of the band: |r| <= kappa h */
    int watched;                /* difference rows are banded, as a hinge was seen exceeded; else
                                 * they are only summed up */
    int cells;                  /* unmoved weights are gathered in cells */
    unsigned char *mixed;       /* WF_LAD_KINDS x WF_LAD_CELLS: kept row by row */
    ptrdiff_t kept;             /* rows of the last pass, all kinds */
    double limit;               /* bytes for kept rows */
    wf_band *lane;              /* WF_SCAN_LANES x WF_LAD_KINDS during a pass */
    wf_band joined[WF_LAD_KINDS];
} wf_unit;

typedef struct {
    enum { WF_LAD_SAMPLE, WF_LAD_BAND } phase;
    int hinged;
    double eta; /* weight of one unit of excess over the hinge's limit, in N m F */
    ptrdiff_t n_units;
    wf_unit *unit;
    ptrdiff_t segment_start; /* of the segment that is read, in the rows of the fit */

    ptrdiff_t stride, n_sample; /* one row of every stride */
    double *sample;             /* (p + m) columns of n_sample */
    int32_t *sample_group;
    unsigned char *taken; /* n_sample: the rows that came by in this pass */
    double *sums;         /* p + m + 1: N times mean |value| of every column of the sample, and N */

    ptrdiff_t rank;
    double *L;    /* rank x (p + 1): whitens a row */
    double *null; /* (q - rank) x (p + 1): combinations of columns that vanish on the sample */
    double *span; /* q x q: R of the sample's QR, its columns in their own order and scale */

    ptrdiff_t n_stray; /* rows of the last pass on which a combination of `null` did not vanish */
    double *stray;     /* WF_SCAN_LANES x WF_LAD_STRAYS x (p + 1): as many of them as are kept */
    int *lane_strays;  /* WF_SCAN_LANES */
} wf_lad;

static inline wf_lad *wf_lad_of(const wf_fit *fit)
{
    return fit->solver;
}

/* Solves a unit on what a pass gathered, and says where to look next, or that it is done. */
typedef wf_status wf_unit_solver(wf_fit *fit, wf_unit *unit, int (*stop)(void *), void *context);

/* -- units -- */

/* Whether a unit has rows of this kind, and whether the next pass bands them. */
int wf_unit_has(const wf_unit *unit, int kind);
int wf_unit_bands(const wf_unit *unit, int kind);
/* What double precision resolves of the value at coefficients b (parts x (p + 1)). */
double wf_unit_noise(const wf_fit *fit, const wf_unit *unit, const double *b);
/* Frees its bands. */
void wf_unit_release(wf_unit *unit);

/* -- the hinge -- */

/* Whether so much excess shows in a value of this size: if not, the hinge can stay out. */
int wf_hinge_counts(const wf_fit *fit, double excess, double value);
/* What no group's last update exceeds at the minimum, from the sums of |r| of both parts and of
 * |difference| at any point: a larger limit is the same as this one, but for the rounding that it
 * costs. */
double wf_reach(double errors, double moved);

/* -- bands -- */

/* The share of rows that a band should keep, and the bytes that they are likely to take. */
double wf_band_share(const wf_fit *fit);
ptrdiff_t wf_band_row_bytes(const wf_fit *fit);
double wf_band_bytes(const wf_fit *fit, const wf_unit *unit);
/* Whether rows of this kind show a weight as unmoved; its column c is row[c * step]. */
int wf_unmoved(const wf_fit *fit, const wf_unit *unit, int kind, const double *row, ptrdiff_t step);
int wf_use_cells(const wf_fit *fit, const wf_unit *unit, double unmoved_share);
/* An empty band of this unit and kind, and its end, which also takes what a failure has left. */
wf_status wf_band_new(const wf_fit *fit, const wf_unit *unit, int kind, wf_band *band);
void wf_band_release(wf_band *band);
/* Empty bands of all lanes of all active units. */
wf_status wf_band_prepare(wf_fit *fit);
/* How many numbers a band adds up from `g` on, and from `cell` on. */
ptrdiff_t wf_band_sums(const wf_fit *fit, int kind);
ptrdiff_t wf_band_cells(const wf_fit *fit);
/* All but the kept rows. */
void wf_band_add(const wf_fit *fit, int kind, const wf_band *from, wf_band *to);

#endif

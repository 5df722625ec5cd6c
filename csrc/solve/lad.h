/* The state of an absolute_error fit, shared by lad.c (life, sample, schedule), lad_sample.c,
 * lad_band.c, lad_join.c, lad_solve.c and lad_part.c. */
#ifndef WF_SOLVE_LAD_H
#define WF_SOLVE_LAD_H

#include "solve/fit.h"
#include "solve/scan.h"

enum {
    WF_LAD_DIRECT_ROWS = 1 << 13, /* up to here the whole problem is the sample */
    WF_LAD_STRAYS = 8,            /* rows outside the sample's span that a lane keeps */
    WF_LAD_PATIENCE = 8, /* passes after which a problem that fits memory is loaded whole */
    WF_LAD_SAMPLE_BYTES = 96 << 20,
    WF_LAD_KEPT_BYTES = 128 << 20, /* of all bands of a pass */
    WF_LAD_SOLVER_ROWS = 1 << 20   /* of the solvers that run at a time, and the most of one band */
};

/* Rows of one unit that have a sign of their own: part 0, part 1, or the difference of both (the
 * hinge's). */
enum { WF_LAD_KINDS = 3, WF_LAD_DIFFERENCE = 2 };

/* Rows of unmoved weights may be a large share of all, with residuals that vanish together. In the
 * band they are summed up by cells of similar weights, |sum r_i| <= sum |r_i| keeping the bound;
 * cells in which signs differ are found out and kept row by row in the next pass. */
enum { WF_LAD_CELLS = 1024, WF_LAD_CELL_EXTRA = 3 /* beside the row */ };

/* What one lane gathers of one kind in one pass. */
typedef struct {
    ptrdiff_t n, capacity;
    double *kept;   /* n x (rank + 1): whitened row, residual */
    int32_t *group; /* of kept difference rows */
    int spilled;    /* rows of the band did not fit and were taken by their sign */
    ptrdiff_t in_band;
    double *cell;   /* WF_LAD_CELLS x (rank + 3): sum of rows, of r, of |r|, count; or NULL */
    double dropped; /* sum of |r| over dropped rows */
    double *g; /* rank: - sum of sign * row; of difference rows by hinge, n_groups x rank, with the
                  sign of u */
    double *total; /* n_groups: sum of |r| over dropped difference rows */
    double *size;  /* n_groups: sum of h over all difference rows */
    double *whole; /* n_groups: sum of |r| over all difference rows */
} wf_band;

typedef enum { WF_UNIT_WAITING, WF_UNIT_ACTIVE, WF_UNIT_DONE } wf_unit_state;

typedef struct {
    wf_unit_state state;
    int parts;        /* 1, or 2 with the hinge on their difference */
    ptrdiff_t target; /* of part 0; part 1 is the next */
    double *centre;   /* parts x (p + 1): coefficients, intercept */
    double *best;     /* the like, of the least F known */
    double value;     /* N m F of the unit at best */
    double bound;     /* largest known lower bound on it */
    double noise;     /* what double precision can tell apart in it */
    double kappa[WF_LAD_KINDS];
    int watched; /* difference rows are banded, as a hinge was seen exceeded; else they are only
                    summed up */
    int cells;   /* unmoved weights are gathered in cells */
    unsigned char *mixed; /* WF_LAD_KINDS x WF_LAD_CELLS: kept row by row */
    ptrdiff_t kept;       /* rows of the last pass, all kinds */
    double limit;         /* bytes for kept rows */
    wf_band *lane;        /* WF_SCAN_LANES x WF_LAD_KINDS during a pass */
    wf_band joined[WF_LAD_KINDS];
} wf_unit;

struct wf_lad {
    enum { WF_LAD_SAMPLE, WF_LAD_BAND } phase;
    int hinged;
    double eta; /* weight of one unit of excess, in units of N m F */
    ptrdiff_t n_units;
    wf_unit *unit;
    ptrdiff_t stride, n_sample; /* one row of every stride */
    ptrdiff_t segment_start;
    double *sample; /* (p + m) columns of n_sample */
    int32_t *sample_group;
    unsigned char *taken; /* n_sample: the rows that came by in this pass */
    ptrdiff_t rank;
    double *L;    /* rank x (p + 1) */
    double *null; /* (q - rank) x (p + 1): combinations of the columns that vanish on the sample */
    double *span; /* q x q: R of the sample's QR, in the order and scale of its columns; what L is
                     made from */
    ptrdiff_t
        n_stray;   /* rows of the last pass on which one of them did not vanish, as far as kept: */
    double *stray; /* WF_SCAN_LANES x WF_LAD_STRAYS x (p + 1), rows of [x, 1] */
    int *lane_strays; /* WF_SCAN_LANES */
    double *sums;     /* p + m + 1: mean |value| * N of every column of the sample, and N */
};

typedef wf_status wf_unit_solver(wf_fit *fit, wf_unit *unit, int (*stop)(void *), void *context);

void wf_lad_unwhiten(const wf_fit *fit, const double *z, double *b);
void wf_sample_sums(wf_fit *fit);
double wf_band_share(const wf_fit *fit);
/* Row of a weight that did not move, as far as rows of this kind can tell; value_c = row[c * step].
 */
int wf_unmoved(const wf_fit *fit, const wf_unit *unit, int kind, const double *row, ptrdiff_t step);
int wf_use_cells(const wf_fit *fit, const wf_unit *unit, double unmoved_share);
wf_unit_solver wf_sample_solve;

/* Whether a unit has rows of this kind, and whether the next pass bands them. */
int wf_unit_has(const wf_unit *unit, int kind);
int wf_unit_bands(const wf_unit *unit, int kind);
wf_unit_solver wf_band_solve;
wf_visitor wf_band_visit;
ptrdiff_t wf_band_room(const wf_fit *fit);
double wf_band_bytes(const wf_fit *fit, const wf_unit *unit);
wf_status wf_band_prepare(wf_fit *fit);
wf_status wf_band_join(wf_fit *fit);
/* An empty band of this unit and kind, and its end. */
wf_status wf_band_new(const wf_fit *fit, const wf_unit *unit, int kind, wf_band *band);
void wf_band_release(wf_band *band);
/* How many numbers a band adds up from `g` on, and from `cell` on. */
ptrdiff_t wf_band_sums(const wf_fit *fit, int kind);
ptrdiff_t wf_band_cells(const wf_fit *fit);
/* All but the kept rows. */
void wf_band_add(const wf_fit *fit, int kind, const wf_band *from, wf_band *to);
void wf_unit_release(wf_unit *unit);

/* Whether so much excess shows in a value of F of this size: if not, the hinge can stay out. */
int wf_hinge_counts(const wf_fit *fit, double excess, double value);

/* What no group's last update exceeds at the minimum of F, from the sums of |r| of both parts and
 * of |difference| at any point: a larger limit is the same as this one, but for the rounding it
 * costs.
 */
double wf_reach(double errors, double moved);

/* The double-precision resolution of N m F of a unit at coefficients b (parts x (p + 1)). */
double wf_unit_noise(const wf_fit *fit, const wf_unit *unit, const double *b);

#endif

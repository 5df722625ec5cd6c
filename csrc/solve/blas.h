/* The BLAS and LAPACK calls in use. Declared here so that any LP64 OpenBLAS serves; WF_BLAS_PREFIX
 * is set by the build where its symbols carry one. Matrices are column-major. */
#ifndef WF_SOLVE_BLAS_H
#define WF_SOLVE_BLAS_H

#include <stddef.h>

#if defined(WF_BLAS_PREFIX)
#define WF_JOIN_(a, b) a##b
#define WF_JOIN(a, b) WF_JOIN_(a, b)
#define WF_BLAS(name) WF_JOIN(WF_BLAS_PREFIX, name)
#else
#define WF_BLAS(name) name
#endif

/* Fortran character arguments carry a hidden length at the end, which C passes too, to be safe with
 * any compiler. */
void WF_BLAS(dgemm_)(const char *ta, const char *tb, const int *m, const int *n, const int *k,
                     const double *alpha, const double *a, const int *lda, const double *b,
                     const int *ldb, const double *beta, double *c, const int *ldc, size_t, size_t);
void WF_BLAS(dsyrk_)(const char *uplo, const char *trans, const int *n, const int *k,
                     const double *alpha, const double *a, const int *lda, const double *beta,
                     double *c, const int *ldc, size_t, size_t);
void WF_BLAS(dpotrf_)(const char *uplo, const int *n, double *a, const int *lda, int *info, size_t);
void WF_BLAS(dpotrs_)(const char *uplo, const int *n, const int *nrhs, const double *a,
                      const int *lda, double *b, const int *ldb, int *info, size_t);
void WF_BLAS(dpocon_)(const char *uplo, const int *n, const double *a, const int *lda,
                      const double *anorm, double *rcond, double *work, int *iwork, int *info,
                      size_t);
void WF_BLAS(dpotri_)(const char *uplo, const int *n, double *a, const int *lda, int *info, size_t);
void WF_BLAS(dgesv_)(const int *n, const int *nrhs, double *a, const int *lda, int *pivots,
                     double *b, const int *ldb, int *info);
void WF_BLAS(dgeqp3_)(const int *m, const int *n, double *a, const int *lda, int *pivots,
                      double *tau, double *work, const int *lwork, int *info);
void WF_BLAS(dtrtri_)(const char *uplo, const char *diag, const int *n, double *a, const int *lda,
                      int *info, size_t, size_t);
void WF_BLAS(dsyevd_)(const char *jobz, const char *uplo, const int *n, double *a, const int *lda,
                      double *w, double *work, const int *lwork, int *iwork, const int *liwork,
                      int *info, size_t, size_t);
void WF_BLAS(dgesdd_)(const char *jobz, const int *m, const int *n, double *a, const int *lda,
                      double *s, double *u, const int *ldu, double *vt, const int *ldvt,
                      double *work, const int *lwork, int *iwork, int *info, size_t);
void WF_BLAS(dgeqrf_)(const int *m, const int *n, double *a, const int *lda, double *tau,
                      double *work, const int *lwork, int *info);
void WF_BLAS(dorgqr_)(const int *m, const int *n, const int *k, double *a, const int *lda,
                      const double *tau, double *work, const int *lwork, int *info);
void WF_BLAS(openblas_set_num_threads)(int n);
char *WF_BLAS(openblas_get_config)(void);

/* To be called before the first of these: one BLAS thread inside each of ours. A bundled library is
 * a private copy, so nobody else's setting changes. */
void wf_blas_begin(void);

#endif

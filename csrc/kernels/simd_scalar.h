/* One lane, plain C: runs anywhere and says what the vector files must compute. */
#include <math.h>
#include <string.h>

#include "core/half.h"

#define ISA scalar
#define FW 1
#define DW 1
typedef float vf;
typedef double vd;
typedef int vmask;

static inline vf vf_set1(float x)
{
    return x;
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return fmaf(a, b, c);
}
static inline vmask vf_beyond(vmask m, vf x, float limit)
{
    return m | !(fabsf(x) <= limit);
}
static inline vf vf_load_f32(const float *p)
{
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}
static inline void vf_store_f32(float *p, vf x)
{
    *p = x;
}
static inline void vf_stream_f32(float *p, vf x)
{
    *p = x;
}
static inline uint16_t load_16(const uint16_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return wf_f32_from_f16(load_16(p));
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    *p = wf_f16_from_f32(x);
}
static inline void vf_stream_f16(uint16_t *p, vf x)
{
    *p = wf_f16_from_f32(x);
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    return wf_f32_from_bf16(load_16(p));
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    *p = wf_bf16_from_f32(x);
}
static inline void vf_stream_bf16(uint16_t *p, vf x)
{
    *p = wf_bf16_from_f32(x);
}

static inline vd vd_set1(double x)
{
    return x;
}
static inline vd vd_fma(vd a, vd b, vd c)
{
    return fma(a, b, c);
}
static inline vmask vd_beyond(vmask m, vd x, double limit)
{
    return m | !(fabs(x) <= limit);
}
static inline vd vd_load_f64(const double *p)
{
    double d;
    memcpy(&d, p, sizeof d);
    return d;
}
static inline void vd_store_f64(double *p, vd x)
{
    *p = x;
}
static inline void vd_stream_f64(double *p, vd x)
{
    *p = x;
}
static inline vd vd_load_f32(const float *p)
{
    return (double)vf_load_f32(p);
}

static inline vmask vmask_none(void)
{
    return 0;
}
static inline int vf_any(vmask m)
{
    return m;
}
static inline int vd_any(vmask m)
{
    return m;
}

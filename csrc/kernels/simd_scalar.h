/* One number at a time, plain C: runs anywhere and says what the vector files must compute. */
#include <math.h>
#include <string.h>

#include "core/half.h"

#define ISA scalar
#define FW 1
#define DW 1
#define BW 1
typedef float vf;
typedef double vd;
typedef int vf_bad, vd_bad, vh_bad, vb_bad;
typedef uint16_t vh, vb;
typedef float vp; /* elsewhere two: what two bfloat16 of a word are in float32 */

static inline vf vf_set1(float x)
{
    return x;
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return fmaf(a, b, c);
}
static inline vf_bad vf_note(vf_bad bad, vf x)
{
    return bad | !isfinite(x);
}
static inline int vf_any(vf_bad bad)
{
    return bad;
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

static inline vh vh_load(const uint16_t *p)
{
    return load_16(p);
}
static inline vf vh_to_f32(vh x)
{
    return wf_f32_from_f16(x);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return vh_to_f32(vh_load(p));
}
static inline vh vh_from_f32(vf x)
{
    return wf_f16_from_f32(x);
}
static inline vh_bad vh_note(vh_bad bad, vh x)
{
    return bad | ((x & 0x7fff) >= 0x7c00);
}
static inline int vh_any(vh_bad bad)
{
    return bad;
}
static inline void vh_store(uint16_t *p, vh x)
{
    *p = x;
}
static inline void vh_stream(uint16_t *p, vh x)
{
    *p = x;
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    vh_store(p, vh_from_f32(x));
}

static inline vp vp_set1(float x)
{
    return x;
}
static inline vp vp_fma(vp a, vp b, vp c)
{
    return fmaf(a, b, c);
}
static inline vb vb_load(const uint16_t *p)
{
    return load_16(p);
}
static inline vp vb_to_f32(vb x)
{
    return wf_f32_from_bf16(x);
}
static inline vp vp_load_bf16(const uint16_t *p)
{
    return vb_to_f32(vb_load(p));
}
static inline void vp_store_f32(float *p, vp x)
{
    *p = x;
}
static inline vb vb_from_f32(vp x)
{
    return wf_bf16_from_f32(x);
}
static inline vb_bad vb_note(vb_bad bad, vb x)
{
    return bad | ((x & 0x7fff) >= 0x7f80);
}
static inline int vb_any(vb_bad bad)
{
    return bad;
}
static inline void vb_store(uint16_t *p, vb x)
{
    *p = x;
}
static inline void vb_stream(uint16_t *p, vb x)
{
    *p = x;
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    return wf_f32_from_bf16(load_16(p));
}
static inline void vf_store_bf16(uint16_t *p, vf x)
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
static inline vd_bad vd_note(vd_bad bad, vd x)
{
    return bad | !isfinite(x);
}
static inline int vd_any(vd_bad bad)
{
    return bad;
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

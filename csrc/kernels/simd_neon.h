#include <arm_neon.h>

#define ISA neon
#define FW 4
#define DW 2
typedef float32x4_t vf;
typedef float64x2_t vd;
typedef uint32x4_t vmask;

static inline vf vf_set1(float x)
{
    return vdupq_n_f32(x);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
static inline vmask vf_beyond(vmask m, vf x, float limit)
{
    return vorrq_u32(m, vmvnq_u32(vcleq_f32(vabsq_f32(x), vdupq_n_f32(limit))));
}
static inline vf vf_load_f32(const float *p)
{
    return vld1q_f32(p);
}
static inline void vf_store_f32(float *p, vf x)
{
    vst1q_f32(p, x);
}
static inline void vf_stream_f32(float *p, vf x)
{
    vst1q_f32(p, x);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
static inline void vf_stream_f16(uint16_t *p, vf x)
{
    vf_store_f16(p, x);
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16));
}
static inline void vf_stream_bf16(uint16_t *p, vf x)
{
    vf_store_bf16(p, x);
}

static inline vd vd_set1(double x)
{
    return vdupq_n_f64(x);
}
static inline vd vd_fma(vd a, vd b, vd c)
{
    return vfmaq_f64(c, a, b);
}
static inline vmask vd_beyond(vmask m, vd x, double limit)
{
    const uint64x2_t inside = vcleq_f64(vabsq_f64(x), vdupq_n_f64(limit));
    return vorrq_u32(m, vmvnq_u32(vreinterpretq_u32_u64(inside)));
}
static inline vd vd_load_f64(const double *p)
{
    return vld1q_f64(p);
}
static inline void vd_store_f64(double *p, vd x)
{
    vst1q_f64(p, x);
}
static inline void vd_stream_f64(double *p, vd x)
{
    vst1q_f64(p, x);
}
static inline vd vd_load_f32(const float *p)
{
    return vcvt_f64_f32(vld1_f32(p));
}

static inline vmask vmask_none(void)
{
    return vdupq_n_u32(0);
}
static inline int vf_any(vmask m)
{
    return vmaxvq_u32(m) != 0;
}
static inline int vd_any(vmask m)
{
    return vmaxvq_u32(m) != 0;
}

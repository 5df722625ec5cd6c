/* The vector vocabulary (simd_scalar.h says what each word computes) in NEON of ARM64. */
#include <arm_neon.h>

#define ISA neon
#define FW 4
#define DW 2
#define BW 8
typedef float32x4_t vf;
typedef float64x2_t vd;
typedef float32x4_t vf_bad;
typedef float64x2_t vd_bad;
typedef uint16x4_t vh; /* float16, FW of them */
typedef uint16x4_t vh_bad;
typedef uint16x8_t vb; /* bfloat16, two in each 32-bit word */
typedef uint16x8_t vb_bad;
typedef struct {
    vf even, odd;
} vp; /* what two bfloat16 of a word are in float32 */

static inline vf vf_set1(float x)
{
    return vdupq_n_f32(x);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
static inline vf_bad vf_note(vf_bad bad, vf x)
{
    return vfmaq_f32(bad, x, vdupq_n_f32(0));
}
static inline int vf_any(vf_bad bad)
{
    return vminvq_u32(vceqq_f32(bad, bad)) == 0;
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

static inline vh vh_load(const uint16_t *p)
{
    return vld1_u16(p);
}
static inline vf vh_to_f32(vh x)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(x));
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return vh_to_f32(vh_load(p));
}
static inline vh vh_from_f32(vf x)
{
    return vreinterpret_u16_f16(vcvt_f16_f32(x));
}
static inline vh_bad vh_note(vh_bad bad, vh x)
{
    return vmax_u16(bad, vand_u16(x, vdup_n_u16(0x7fff)));
}
static inline int vh_any(vh_bad bad)
{
    return vmaxv_u16(bad) >= 0x7c00;
}
static inline void vh_store(uint16_t *p, vh x)
{
    vst1_u16(p, x);
}
static inline void vh_stream(uint16_t *p, vh x)
{
    vst1_u16(p, x);
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    vh_store(p, vh_from_f32(x));
}

static inline vp vp_set1(float x)
{
    return (vp){vf_set1(x), vf_set1(x)};
}
static inline vp vp_fma(vp a, vp b, vp c)
{
    return (vp){vf_fma(a.even, b.even, c.even), vf_fma(a.odd, b.odd, c.odd)};
}
static inline vb vb_load(const uint16_t *p)
{
    return vld1q_u16(p);
}
static inline vp vb_to_f32(vb x)
{
    const uint32x4_t both = vreinterpretq_u32_u16(x);
    const uint32x4_t odd = vandq_u32(both, vdupq_n_u32(0xffff0000));
    return (vp){vreinterpretq_f32_u32(vshlq_n_u32(both, 16)), vreinterpretq_f32_u32(odd)};
}
static inline vp vp_load_bf16(const uint16_t *p)
{
    return vb_to_f32(vb_load(p));
}
static inline void vp_store_f32(float *p, vp x)
{
    float even[FW], odd[FW];
    vf_store_f32(even, x.even);
    vf_store_f32(odd, x.odd);
    for (int i = 0; i < FW; i++) {
        p[2 * i] = even[i];
        p[2 * i + 1] = odd[i];
    }
}
/* The upper half of each word is the bfloat16. Right for NaN of no payload in the lower half. */
static inline uint32x4_t round_bf16(vf x)
{
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
}
static inline vb vb_from_f32(vp x)
{
    const uint32x4_t even = vshrq_n_u32(round_bf16(x.even), 16);
    const uint32x4_t odd = vandq_u32(round_bf16(x.odd), vdupq_n_u32(0xffff0000));
    return vreinterpretq_u16_u32(vorrq_u32(even, odd));
}
static inline vb_bad vb_note(vb_bad bad, vb x)
{
    return vmaxq_u16(bad, vandq_u16(x, vdupq_n_u16(0x7fff)));
}
static inline int vb_any(vb_bad bad)
{
    return vmaxvq_u16(bad) >= 0x7f80;
}
static inline void vb_store(uint16_t *p, vb x)
{
    vst1q_u16(p, x);
}
static inline void vb_stream(uint16_t *p, vb x)
{
    vst1q_u16(p, x);
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    const uint32x4_t quiet = vorrq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), round_bf16(x), quiet), 16));
}

static inline vd vd_set1(double x)
{
    return vdupq_n_f64(x);
}
static inline vd vd_fma(vd a, vd b, vd c)
{
    return vfmaq_f64(c, a, b);
}
static inline vd_bad vd_note(vd_bad bad, vd x)
{
    return vfmaq_f64(bad, x, vdupq_n_f64(0));
}
static inline int vd_any(vd_bad bad)
{
    return vminvq_u32(vreinterpretq_u32_u64(vceqq_f64(bad, bad))) == 0;
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

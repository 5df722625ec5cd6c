/* The vector vocabulary (simd_scalar.h says what each word computes) in AVX2 with FMA and F16C. */
#include <immintrin.h>

#define ISA avx2
#define FW 8
#define DW 4
#define BW 16
typedef __m256 vf;
typedef __m256d vd;
typedef __m256 vf_bad;
typedef __m256d vd_bad;
typedef __m128i vh; /* float16, FW of them */
typedef __m128i vh_bad;
typedef __m256i vb; /* bfloat16, two in each 32-bit word */
typedef __m256i vb_bad;
typedef struct {
    vf even, odd;
} vp; /* what two bfloat16 of a word are in float32 */

static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf_bad vf_note(vf_bad bad, vf x)
{
    return _mm256_fmadd_ps(x, _mm256_setzero_ps(), bad);
}
static inline int vf_any(vf_bad bad)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(bad, bad, _CMP_UNORD_Q)) != 0;
}
static inline vf vf_load_f32(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store_f32(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
static inline void vf_stream_f32(float *p, vf x)
{
    _mm256_stream_ps(p, x);
}

static inline vh vh_load(const uint16_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}
static inline vf vh_to_f32(vh x)
{
    return _mm256_cvtph_ps(x);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return vh_to_f32(vh_load(p));
}
static inline vh vh_from_f32(vf x)
{
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vh_bad vh_note(vh_bad bad, vh x)
{
    return _mm_max_epi16(bad, _mm_and_si128(x, _mm_set1_epi16(0x7fff)));
}
static inline int vh_any(vh_bad bad)
{
    return _mm_movemask_epi8(_mm_cmpgt_epi16(bad, _mm_set1_epi16(0x7bff))) != 0;
}
static inline void vh_store(uint16_t *p, vh x)
{
    _mm_storeu_si128((__m128i *)p, x);
}
static inline void vh_stream(uint16_t *p, vh x)
{
    _mm_stream_si128((__m128i *)p, x);
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
    return _mm256_loadu_si256((const __m256i *)p);
}
static inline vp vb_to_f32(vb x)
{
    const __m256i odd = _mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000));
    return (vp){_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), _mm256_castsi256_ps(odd)};
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
static inline __m256i round_bf16(vf x)
{
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
static inline vb vb_from_f32(vp x)
{
    const __m256i even = _mm256_srli_epi32(round_bf16(x.even), 16);
    return _mm256_blend_epi16(even, round_bf16(x.odd), 0xaa);
}
static inline vb_bad vb_note(vb_bad bad, vb x)
{
    return _mm256_max_epi16(bad, _mm256_and_si256(x, _mm256_set1_epi16(0x7fff)));
}
static inline int vb_any(vb_bad bad)
{
    return _mm256_movemask_epi8(_mm256_cmpgt_epi16(bad, _mm256_set1_epi16(0x7f7f))) != 0;
}
static inline void vb_store(uint16_t *p, vb x)
{
    _mm256_storeu_si256((__m256i *)p, x);
}
static inline void vb_stream(uint16_t *p, vb x)
{
    _mm256_stream_si256((__m256i *)p, x);
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    const vf quiet = _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
    const vf is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const vf chosen = _mm256_blendv_ps(_mm256_castsi256_ps(round_bf16(x)), quiet, is_nan);
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}

static inline vd vd_set1(double x)
{
    return _mm256_set1_pd(x);
}
static inline vd vd_fma(vd a, vd b, vd c)
{
    return _mm256_fmadd_pd(a, b, c);
}
static inline vd_bad vd_note(vd_bad bad, vd x)
{
    return _mm256_fmadd_pd(x, _mm256_setzero_pd(), bad);
}
static inline int vd_any(vd_bad bad)
{
    return _mm256_movemask_pd(_mm256_cmp_pd(bad, bad, _CMP_UNORD_Q)) != 0;
}
static inline vd vd_load_f64(const double *p)
{
    return _mm256_loadu_pd(p);
}
static inline void vd_store_f64(double *p, vd x)
{
    _mm256_storeu_pd(p, x);
}
static inline void vd_stream_f64(double *p, vd x)
{
    _mm256_stream_pd(p, x);
}
static inline vd vd_load_f32(const float *p)
{
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
}

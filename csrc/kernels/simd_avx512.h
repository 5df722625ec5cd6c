#include <immintrin.h>

#define ISA avx512
#define FW 16
#define DW 8
typedef __m512 vf;
typedef __m512d vd;
typedef unsigned vmask;

static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vmask vf_beyond(vmask m, vf x, float limit)
{
    return m | _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(limit), _CMP_NLE_UQ);
}
static inline vf vf_load_f32(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store_f32(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
static inline void vf_stream_f32(float *p, vf x)
{
    _mm512_stream_ps(p, x);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline __m256i to_f16(vf x)
{
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, to_f16(x));
}
static inline void vf_stream_f16(uint16_t *p, vf x)
{
    _mm256_stream_si256((__m256i *)p, to_f16(x));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline __m256i to_bf16(vf x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, to_bf16(x));
}
static inline void vf_stream_bf16(uint16_t *p, vf x)
{
    _mm256_stream_si256((__m256i *)p, to_bf16(x));
}

static inline vd vd_set1(double x)
{
    return _mm512_set1_pd(x);
}
static inline vd vd_fma(vd a, vd b, vd c)
{
    return _mm512_fmadd_pd(a, b, c);
}
static inline vmask vd_beyond(vmask m, vd x, double limit)
{
    return m | _mm512_cmp_pd_mask(_mm512_abs_pd(x), _mm512_set1_pd(limit), _CMP_NLE_UQ);
}
static inline vd vd_load_f64(const double *p)
{
    return _mm512_loadu_pd(p);
}
static inline void vd_store_f64(double *p, vd x)
{
    _mm512_storeu_pd(p, x);
}
static inline void vd_stream_f64(double *p, vd x)
{
    _mm512_stream_pd(p, x);
}
static inline vd vd_load_f32(const float *p)
{
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
}

static inline vmask vmask_none(void)
{
    return 0;
}
static inline int vf_any(vmask m)
{
    return m != 0;
}
static inline int vd_any(vmask m)
{
    return m != 0;
}

#include <immintrin.h>

#define ISA avx2
#define FW 8
#define DW 4
typedef __m256 vf;
typedef __m256d vd;
typedef __m256 vmask;

static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vmask vf_beyond(vmask m, vf x, float limit)
{
    const vf size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    return _mm256_or_ps(m, _mm256_cmp_ps(size, _mm256_set1_ps(limit), _CMP_NLE_UQ));
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
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline __m128i to_f16(vf x)
{
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, to_f16(x));
}
static inline void vf_stream_f16(uint16_t *p, vf x)
{
    _mm_stream_si128((__m128i *)p, to_f16(x));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline __m128i to_bf16(vf x)
{
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256i chosen = _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
    const __m256i high = _mm256_srli_epi32(chosen, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    return _mm256_castsi256_si128(packed);
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, to_bf16(x));
}
static inline void vf_stream_bf16(uint16_t *p, vf x)
{
    _mm_stream_si128((__m128i *)p, to_bf16(x));
}

static inline vd vd_set1(double x)
{
    return _mm256_set1_pd(x);
}
static inline vd vd_fma(vd a, vd b, vd c)
{
    return _mm256_fmadd_pd(a, b, c);
}
static inline vmask vd_beyond(vmask m, vd x, double limit)
{
    const vd size = _mm256_andnot_pd(_mm256_set1_pd(-0.0), x);
    const vd mask = _mm256_cmp_pd(size, _mm256_set1_pd(limit), _CMP_NLE_UQ);
    return _mm256_or_ps(m, _mm256_castpd_ps(mask));
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

static inline vmask vmask_none(void)
{
    return _mm256_setzero_ps();
}
static inline int vf_any(vmask m)
{
    return _mm256_movemask_ps(m) != 0;
}
static inline int vd_any(vmask m)
{
    return _mm256_movemask_ps(m) != 0;
}

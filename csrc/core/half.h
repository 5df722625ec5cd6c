/* Scalar conversions of the 16-bit floats: to nearest even, NaN kept (and made quiet). */
#ifndef WF_CORE_HALF_H
#define WF_CORE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t wf_bits_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float wf_f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float wf_f32_from_bf16(uint16_t h)
{
    return wf_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t wf_bf16_from_f32(float f)
{
    const uint32_t u = wf_bits_f32(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40u);
    }
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float wf_f32_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) { /* infinity or NaN */
        const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
        return wf_f32_from_bits(sign | 0x7f800000u | quiet | ((magnitude & 0x3ffu) << 13));
    }
    if (magnitude >= 0x400u) {
        return wf_f32_from_bits(sign | ((magnitude << 13) + 0x38000000u));
    }
    /* subnormal: magnitude * 2^-24 is exact in float32 */
    const float value = (float)magnitude * 0x1p-24f;
    return wf_f32_from_bits(sign | wf_bits_f32(value));
}

static inline uint16_t wf_f16_from_f32(float f)
{
    const uint32_t u = wf_bits_f32(f);
    const uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) { /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: the float32 adder rounds at 2^-24 for us */
        const float shifted = wf_f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (wf_bits_f32(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

/* float64 to float32 rounded to odd, so that a second rounding to 16 bits is as good as one. */
static inline float wf_f32_odd_from_f64(double d)
{
    const float f = (float)d;
    const double back = (double)f;
    if (back == d || d != d) {
        return f;
    }
    uint32_t u = wf_bits_f32(f);
    const double size_f = back < 0 ? -back : back;
    const double size_d = d < 0 ? -d : d;
    if (size_f > size_d) {
        u -= 1; /* towards zero; an infinity becomes the largest finite number */
    }
    return wf_f32_from_bits(u | 1u);
}

#endif

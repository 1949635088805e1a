// Vectors of numbers, as GCC and Clang have them, as wide as the machine's, and exponentials of them: for the C++ files of the package.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

namespace {

template <typename T> struct Simd;
template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(BYTES), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    typedef int32_t Int;
    static constexpr float shift = 12582912.0f;                           // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // the first has few bits: its multiples are exact
    static constexpr int mantissa = 23, bias = 127, degree = 6;
    // The polynomial closest to 2^f on [-1/2, 1/2] in relative error, by Remez exchange: off by 1.9e-9
    static constexpr float series[7] = {1.0f, 0.69314720573719575f, 0.24022646890645521f, 0.055503287771053248f, 0.0096184889563311816f,
        0.0013399931177239738f, 0.0001534581216131163f};
};
template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(BYTES), aligned(8), may_alias));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    typedef int64_t Int;
    static constexpr double shift = 6755399441055744.0;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
    static constexpr int mantissa = 52, bias = 1023, degree = 11;
    // off by 3.1e-18
    static constexpr double series[12] = {1.0, 0.6931471805599453305, 0.240226506959101562, 0.0555041086648199216, 0.009618129107588335244,
        0.001333355814678992172, 0.0001540353046251443206, 0.00001525273348998852565, 1.321543308967639918e-6, 1.017819802167193084e-7,
        7.074105613508142796e-9, 4.435282706957277151e-10};
};
constexpr float Simd<float>::series[];
constexpr double Simd<double>::series[];

template <typename T> using Vec = typename Simd<T>::V;
template <typename T> constexpr int lanes = BYTES / int(sizeof(T));
template <typename T> inline Vec<T>& at(T* p) { return *reinterpret_cast<Vec<T>*>(p); }
template <typename T> inline const Vec<T>& at(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }

// e^min(x, 0), or with BASE2 2^min(x, 0), of G vectors in place; zero where x <= lowest, so that nothing is subnormal; NaN stays NaN.
// x is n (or n ln 2) and a rest, whose power is a polynomial. Step by step for all vectors: one's steps wait for each other.
template <typename T, int G, bool BASE2> inline __attribute__((always_inline)) void exponentials(T* p, T lowest) {
    typedef Simd<T> S;
    typedef typename S::I I;
    constexpr T LOG2_E = T(1.44269504088896340736);
    Vec<T> x[G], rounded[G], sum[G];
    I gone[G], scale[G];
    const Vec<T> none = {};
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
        x[g] = at(p + g * lanes<T>);
        gone[g] = x[g] <= none + lowest;
        x[g] = x[g] > none || gone[g] ? none : x[g];
        rounded[g] = BASE2 ? x[g] + S::shift : x[g] * LOG2_E + S::shift;
    }
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
        std::memcpy(&scale[g], &rounded[g], BYTES);
        scale[g] = ((scale[g] << S::mantissa) + (typename S::Int(S::bias) << S::mantissa)) & ~gone[g];
        rounded[g] -= S::shift;
        if (BASE2) {
            x[g] -= rounded[g];
        } else {
            x[g] -= rounded[g] * S::ln2_high;
            x[g] -= rounded[g] * S::ln2_low;
            x[g] *= LOG2_E;
        }
        sum[g] = none + S::series[S::degree];
    }
#pragma GCC unroll 16
    for (int k = S::degree - 1; k >= 0; --k) {
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) sum[g] = sum[g] * x[g] + S::series[k];
    }
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
        Vec<T> power;
        std::memcpy(&power, &scale[g], BYTES);
        at(p + g * lanes<T>) = sum[g] * power;
    }
}

// The same for `count` entries. The last few go through the same arithmetic: where an entry stands changes no bit.
template <typename T, bool BASE2> inline void exponentials_of(T* p, int64_t count, T lowest) {
    constexpr int L = lanes<T>;
    int64_t i = 0;
    for (; i + 4 * L <= count; i += 4 * L) exponentials<T, 4, BASE2>(p + i, lowest);
    for (; i + L <= count; i += L) exponentials<T, 1, BASE2>(p + i, lowest);
    if (i < count) {
        T rest[L] = {};
        std::memcpy(rest, p + i, sizeof(T) * (count - i));
        exponentials<T, 1, BASE2>(rest, lowest);
        std::memcpy(p + i, rest, sizeof(T) * (count - i));
    }
}
}  // namespace

// Softmax-free attention on blocks of tokens that stay in the cache, forward and backward: compiled by cpu_kernels.py at first use.
//
// The formulas, and the names, of softlinalg/_attention_blocks.py: C = exp(-|q - L|^2 / (2 l^2)), out = C X (E^T v). All that a block
// of tokens needs, from its exponents to the products with its features, is done before the next one is touched. Vectors are those
// of GCC and Clang, as wide as the machine's; features are padded to whole vectors, and factors by zeros. Sums over tokens are in
// the type of the tokens for a few blocks, and in double beyond.

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

// One array (batch, heads, rows, width) of unit stride in its last axis; strides in entries.
struct Tokens {
    void* data;
    int64_t batch, head, row;
};

// Layout known to cpu_kernels.py (class _Work). Flat arrays are contiguous, one member for each of batch x heads.
struct Work {
    int64_t heads, n, keys, m, padded, d, e;
    int64_t features_apart, key_features_apart;  // entries from one head's features to the next one's; 0: they share their memory
    Tokens q, k, v, out, grad, dq, dv;
    void *center;        // (B, d)
    void *columns;       // (B, d + 2, padded): of points, of their squares, and alone
    void *rows;          // (B, m, d): w / l^2
    void *features;      // (B, n, padded)
    void *key_features;  // (B, keys, padded)
    double *moment;      // (B, m, e)
    double *x;           // (B, m, m)
    void *core;          // (B, m, e), X moment
    void *factor;        // (B, e, padded) for grad, or null
    void *value_factor;  // (B, e, padded) for v, or null
    void *dmoment;       // (B, m, e), or null where dv is not wanted
    void *scratch;       // softlinalg_scratch_bytes, of one thread
    double lowest, precision;
};

namespace {

constexpr int TILE = 6;    // rows whose sums stay in registers, two vectors each
constexpr int BLOCK = 96;  // tokens in a block: its points, values and features fit in the first caches
constexpr int FLUSH = 8;   // blocks summed before they are added to a sum in double

template <typename T> struct Simd;
template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(BYTES), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    typedef int32_t Int;
    static constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr int mantissa = 23, bias = 127, terms = 8;  // to f^7: off by 5e-9
};
template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(BYTES), aligned(8), may_alias));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    typedef int64_t Int;
    static constexpr double shift = 6755399441055744.0;
    static constexpr int mantissa = 52, bias = 1023, terms = 14;  // to f^13: off by 4e-18
};

// ln(2)^k / k!, the series of 2^f, used on [-1/2, 1/2]
constexpr double SERIES[14] = {1.0, 0.6931471805599453, 0.24022650695910072, 0.05550410866482158, 0.009618129107628477,
    0.0013333558146428443, 0.0001540353039338161, 1.525273380405984e-05, 1.3215486790144309e-06, 1.0178086009239699e-07,
    7.0549116208011225e-09, 4.4455382718708114e-10, 2.5678435993488202e-11, 1.3691488853904128e-12};

template <typename T> using Vec = typename Simd<T>::V;
template <typename T> constexpr int lanes = BYTES / int(sizeof(T));
template <typename T> inline Vec<T>& at(T* p) { return *reinterpret_cast<Vec<T>*>(p); }
template <typename T> inline const Vec<T>& at(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }

// 2^min(x, 0), and zero where x <= lowest, so that nothing is subnormal; NaN stays NaN.
template <typename T> inline Vec<T> power_of_two(Vec<T> x, T lowest) {
    typedef Simd<T> S;
    const Vec<T> none = {};
    x = x > none ? none : x;
    const auto gone = x <= none + lowest;
    x = gone ? none : x;
    const Vec<T> rounded = x + S::shift;
    const Vec<T> f = x - (rounded - S::shift);
    Vec<T> sum = none + T(SERIES[S::terms - 1]);
#pragma GCC unroll 16
    for (int k = S::terms - 2; k >= 0; --k) sum = sum * f + T(SERIES[k]);
    typename S::I exponent;
    std::memcpy(&exponent, &rounded, BYTES);
    exponent = (exponent << S::mantissa) + (typename S::Int(S::bias) << S::mantissa);
    Vec<T> scale;
    std::memcpy(&scale, &exponent, BYTES);
    return gone ? none : sum * scale;
}

// acc += A B for R rows of A and W vectors of columns of B.
template <typename T, int R, int W>
inline __attribute__((always_inline)) void multiply(const T* a, int64_t lda, int64_t depth, const T* b, int64_t ldb, Vec<T> (&acc)[R][W]) {
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> right[W];
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) right[w] = at(b + k * ldb + w * lanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int w = 0; w < W; ++w) acc[r][w] += a[r * lda + k] * right[w];
        }
    }
}

template <typename T> struct Factor {
    const T* a;
    int64_t lda, depth;
    const T* b;
    int64_t ldb;
};

// A1 B1 (+ A2 B2) tile by tile; start(row, column) gives what it is added to, finish(row, column, sum) takes each vector.
template <typename T, int R, int W, typename Start, typename Finish>
inline __attribute__((always_inline)) void tile(int64_t i, int64_t j, const Factor<T>& one, const Factor<T>* two, Start start, Finish finish) {
    Vec<T> acc[R][W];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) acc[r][w] = start(i + r, j + w * lanes<T>);
    }
    multiply<T, R, W>(one.a + i * one.lda, one.lda, one.depth, one.b + j, one.ldb, acc);
    if (two) multiply<T, R, W>(two->a + i * two->lda, two->lda, two->depth, two->b + j, two->ldb, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) finish(i + r, j + w * lanes<T>, acc[r][w]);
    }
}

template <typename T, typename Start, typename Finish>
inline void product(int64_t rows, int64_t width, const Factor<T>& one, const Factor<T>* two, Start start, Finish finish) {
    constexpr int L = lanes<T>;
    for (int64_t j = 0; j < width; j += 2 * L) {
        const bool pair = j + 2 * L <= width;
        int64_t i = 0;
        for (; i + TILE <= rows; i += TILE) {
            if (pair) tile<T, TILE, 2>(i, j, one, two, start, finish);
            else tile<T, TILE, 1>(i, j, one, two, start, finish);
        }
        for (; i < rows; ++i) {
            if (pair) tile<T, 1, 2>(i, j, one, two, start, finish);
            else tile<T, 1, 1>(i, j, one, two, start, finish);
        }
    }
}

template <typename T, int R, int W>
inline void transposed_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t rows, T* sum, int64_t width) {
    Vec<T> acc[R][W];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) acc[r][w] = at(sum + r * width + w * lanes<T>);
    }
    for (int64_t k = 0; k < rows; ++k) {
        Vec<T> right[W];
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) right[w] = at(b + k * ldb + w * lanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int w = 0; w < W; ++w) acc[r][w] += a[k * lda + r] * right[w];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) at(sum + r * width + w * lanes<T>) = acc[r][w];
    }
}

// sum (m, width) += A^T B over the rows of a block.
template <typename T>
inline void add_transposed(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t rows, int64_t m, int64_t width, T* sum) {
    constexpr int L = lanes<T>;
    for (int64_t c = 0; c < width; c += 2 * L) {
        const bool pair = c + 2 * L <= width;
        int64_t j = 0;
        for (; j + TILE <= m; j += TILE) {
            if (pair) transposed_tile<T, TILE, 2>(a + j, lda, b + c, ldb, rows, sum + j * width + c, width);
            else transposed_tile<T, TILE, 1>(a + j, lda, b + c, ldb, rows, sum + j * width + c, width);
        }
        for (; j < m; ++j) {
            if (pair) transposed_tile<T, 1, 2>(a + j, lda, b + c, ldb, rows, sum + j * width + c, width);
            else transposed_tile<T, 1, 1>(a + j, lda, b + c, ldb, rows, sum + j * width + c, width);
        }
    }
}

template <typename T> inline T* place(const Tokens& x, const Work& work, int64_t head) {
    return static_cast<T*>(x.data) + (head / work.heads) * x.batch + (head % work.heads) * x.head;
}

template <typename T> inline T* member(void* x, int64_t head, int64_t entries) { return static_cast<T*>(x) + head * entries; }

// Points less the center, and half of what their squares do to the exponents.
template <typename T>
inline void center_block(const T* points, int64_t stride, const T* center, int64_t rows, int64_t d, T* z, T* squares) {
    for (int64_t r = 0; r < rows; ++r) {
        Vec<T> sum = {};
        for (int64_t c = 0; c < d; c += lanes<T>) {
            const Vec<T> moved = at(points + r * stride + c) - at(center + c);
            at(z + r * d + c) = moved;
            sum += moved * moved;
        }
        T total = 0;
        for (int i = 0; i < lanes<T>; ++i) total += sum[i];
        squares[r] = total;
    }
}

// Features of rows [first, last) of one head.
template <typename T>
inline void write_features(const Work& work, const T* z, const T* squares, const T* columns, int64_t rows, T* features) {
    const int64_t d = work.d, padded = work.padded;
    const T *of_squares = columns + d * padded, *alone = columns + (d + 1) * padded, lowest = T(work.lowest);
    product<T>(rows, padded, {z, d, d, columns, padded}, nullptr,
        [=](int64_t i, int64_t j) { return at(alone + j) + squares[i] * at(of_squares + j); },
        [=](int64_t i, int64_t j, Vec<T> sum) { at(features + i * padded + j) = power_of_two<T>(sum, lowest); });
}

template <typename T> void add_and_clear(T* sum, double* total, int64_t rows, int64_t width, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) {
            total[r * stride + c] += sum[r * width + c];
            sum[r * width + c] = 0;
        }
}

constexpr int WIDEST = 128;     // of points and values
constexpr int LANDMARKS = 256;  // with padding

template <typename T> struct Scratch {
    alignas(64) T z[BLOCK * WIDEST];
    alignas(64) T squares[BLOCK];
    alignas(64) T weights[BLOCK * LANDMARKS];
    alignas(64) T sums[BLOCK];
    alignas(64) T sum[LANDMARKS * WIDEST];
    alignas(64) T column[LANDMARKS];
};

template <typename T> inline Scratch<T>& scratch_of(const Work& work) {
    return *reinterpret_cast<Scratch<T>*>((reinterpret_cast<uintptr_t>(work.scratch) + 63) & ~uintptr_t(63));
}

template <typename T>
void features_of(const Work& work, const Tokens& points, void* all, int64_t apart, int64_t head, int64_t start, int64_t rows, Scratch<T>& s, T*& features) {
    const int64_t d = work.d, padded = work.padded;
    features = member<T>(all, head, apart) + start * padded;
    center_block<T>(place<T>(points, work, head) + start * points.row, points.row, member<T>(work.center, head, d), rows, d, s.z, s.squares);
    write_features<T>(work, s.z, s.squares, member<T>(work.columns, head, (d + 2) * padded), rows, features);
}

// Features of the keys and their moment with the values.
template <typename T> void gather(const Work& work, int64_t head, int64_t first, int64_t last, double* moment) {
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t e = work.e, padded = work.padded;
    const Tokens& points = work.k.data ? work.k : work.q;
    const T* v = place<T>(work.v, work, head);
    std::memset(s.sum, 0, sizeof(T) * work.m * e);
    int held = 0;
    for (int64_t start = first; start < last; start += BLOCK) {
        const int64_t rows = last - start < BLOCK ? last - start : BLOCK;
        T* features;
        features_of<T>(work, points, work.key_features, work.key_features_apart, head, start, rows, s, features);
        add_transposed<T>(features, padded, v + start * work.v.row, work.v.row, rows, work.m, e, s.sum);
        if (++held == FLUSH || start + rows == last) {
            add_and_clear<T>(s.sum, moment, work.m, e, e);
            held = 0;
        }
    }
}

// core = X moment, in double.
template <typename T> void join(const Work& work, int64_t head) {
    const int64_t m = work.m, e = work.e;
    const double *x = work.x + head * m * m, *moment = work.moment + head * work.m * e;
    T* core = member<T>(work.core, head, m * e);
    for (int64_t i = 0; i < m; ++i) {
        double row[WIDEST] = {};
        for (int64_t j = 0; j < m; ++j)
            for (int64_t c = 0; c < e; ++c) row[c] += x[i * m + j] * moment[j * e + c];
        for (int64_t c = 0; c < e; ++c) core[i * e + c] = T(row[c]);
    }
}

// out = C core, with the features of queries where they are not those of the keys.
template <typename T> void scatter(const Work& work, int64_t head, int64_t first, int64_t last) {
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t m = work.m, e = work.e, padded = work.padded, stride = work.out.row;
    const T* core = member<T>(work.core, head, m * e);
    for (int64_t start = first; start < last; start += BLOCK) {
        const int64_t rows = last - start < BLOCK ? last - start : BLOCK;
        T* features = member<T>(work.features, head, work.features_apart) + start * padded;
        if (work.k.data) features_of<T>(work, work.q, work.features, work.features_apart, head, start, rows, s, features);
        T* out = place<T>(work.out, work, head) + start * stride;
        product<T>(rows, e, {features, padded, m, core, e}, nullptr, [](int64_t, int64_t) { return Vec<T>{}; },
            [=](int64_t i, int64_t j, Vec<T> sum) { at(out + i * stride + j) = sum; });
    }
}

// C^T grad.
template <typename T> void gather_grad(const Work& work, int64_t head, int64_t first, int64_t last, double* total) {
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t e = work.e, padded = work.padded;
    const T *grad = place<T>(work.grad, work, head), *features = member<T>(work.features, head, work.features_apart);
    std::memset(s.sum, 0, sizeof(T) * work.m * e);
    int held = 0;
    for (int64_t start = first; start < last; start += BLOCK) {
        const int64_t rows = last - start < BLOCK ? last - start : BLOCK;
        add_transposed<T>(features + start * padded, padded, grad + start * work.grad.row, work.grad.row, rows, work.m, e, s.sum);
        if (++held == FLUSH || start + rows == last) {
            add_and_clear<T>(s.sum, total, work.m, e, e);
            held = 0;
        }
    }
}

// H = C * (grad factor + v value_factor); dq = (H w - rowsum(H) z) / l^2; dv = C dmoment; dw += [H^T z, colsum(H)].
template <typename T> void pull(const Work& work, int64_t head, int64_t first, int64_t last, double* dw) {
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t m = work.m, d = work.d, e = work.e, padded = work.padded;
    const T *all = member<T>(work.features, head, work.features_apart), *rows_of_w = member<T>(work.rows, head, m * d);
    const T *center = member<T>(work.center, head, d), *q = place<T>(work.q, work, head);
    const T *grad = work.factor ? place<T>(work.grad, work, head) : nullptr;
    const T *v = work.value_factor ? place<T>(work.v, work, head) : nullptr;
    const T *factor = work.factor ? member<T>(work.factor, head, e * padded) : nullptr;
    const T *value_factor = work.value_factor ? member<T>(work.value_factor, head, e * padded) : nullptr;
    const T* dmoment = work.dmoment ? member<T>(work.dmoment, head, m * e) : nullptr;
    const T precision = T(work.precision);
    std::memset(s.sum, 0, sizeof(T) * m * d);
    std::memset(s.column, 0, sizeof(T) * padded);
    int held = 0;
    for (int64_t start = first; start < last; start += BLOCK) {
        const int64_t rows = last - start < BLOCK ? last - start : BLOCK;
        const T* features = all + start * padded;
        const Factor<T> one = {factor ? grad + start * work.grad.row : nullptr, work.grad.row, e, factor, padded};
        const Factor<T> two = {value_factor ? v + start * work.v.row : nullptr, work.v.row, e, value_factor, padded};
        T* weights = s.weights;
        product<T>(rows, padded, factor ? one : two, factor && value_factor ? &two : nullptr, [](int64_t, int64_t) { return Vec<T>{}; },
            [=](int64_t i, int64_t j, Vec<T> sum) { at(weights + i * padded + j) = sum * at(features + i * padded + j); });
        if (dmoment) {
            const int64_t stride = work.dv.row;
            T* dv = place<T>(work.dv, work, head) + start * stride;
            product<T>(rows, e, {features, padded, m, dmoment, e}, nullptr, [](int64_t, int64_t) { return Vec<T>{}; },
                [=](int64_t i, int64_t j, Vec<T> sum) { at(dv + i * stride + j) = sum; });
        }
        center_block<T>(q + start * work.q.row, work.q.row, center, rows, d, s.z, s.squares);
        for (int64_t r = 0; r < rows; ++r) {
            Vec<T> sum = {};
            for (int64_t j = 0; j < padded; j += lanes<T>) {
                sum += at(weights + r * padded + j);
                at(s.column + j) += at(weights + r * padded + j);
            }
            T total = 0;
            for (int i = 0; i < lanes<T>; ++i) total += sum[i];
            s.sums[r] = total * precision;
        }
        add_transposed<T>(weights, padded, s.z, d, rows, m, d, s.sum);
        const int64_t stride = work.dq.row;
        T *dq = place<T>(work.dq, work, head) + start * stride;
        const T *z = s.z, *sums = s.sums;
        product<T>(rows, d, {weights, padded, m, rows_of_w, d}, nullptr,
            [=](int64_t i, int64_t j) { return -(sums[i] * at(z + i * d + j)); },
            [=](int64_t i, int64_t j, Vec<T> sum) { at(dq + i * stride + j) = sum; });
        if (++held == FLUSH || start + rows == last) {
            add_and_clear<T>(s.sum, dw, m, d, d + 1);
            for (int64_t j = 0; j < m; ++j) {
                dw[j * (d + 1) + d] += s.column[j];
                s.column[j] = 0;
            }
            held = 0;
        }
    }
}

template <typename T> void forward(const Work& work, int64_t first, int64_t last) {
    for (int64_t head = first; head < last; ++head) {
        gather<T>(work, head, 0, work.keys, work.moment + head * work.m * work.e);
        join<T>(work, head);
        scatter<T>(work, head, 0, work.n);
    }
}
}  // namespace

// Steps of one head, over rows [first, last): 0 gather, 1 join, 2 scatter, 3 gather_grad, 4 pull; `total` is where 0, 3 and 4 add.
// Step 5 is 0 to 2 for heads [first, last).
template <typename T> static void step(const Work* work, int32_t kind, int64_t head, int64_t first, int64_t last, double* total) {
    switch (kind) {
        case 0: return gather<T>(*work, head, first, last, total);
        case 1: return join<T>(*work, head);
        case 2: return scatter<T>(*work, head, first, last);
        case 3: return gather_grad<T>(*work, head, first, last, total);
        case 4: return pull<T>(*work, head, first, last, total);
        default: return forward<T>(*work, first, last);
    }
}

extern "C" {
void softlinalg_step_float(const Work* work, int32_t kind, int64_t head, int64_t first, int64_t last, double* total) {
    step<float>(work, kind, head, first, last, total);
}
void softlinalg_step_double(const Work* work, int32_t kind, int64_t head, int64_t first, int64_t last, double* total) {
    step<double>(work, kind, head, first, last, total);
}
int32_t softlinalg_vector_bytes() { return BYTES; }
int64_t softlinalg_work_bytes() { return sizeof(Work); }
int64_t softlinalg_scratch_bytes() { return sizeof(Scratch<double>) + 64; }
}

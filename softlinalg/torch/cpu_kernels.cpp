// Softmax-free attention on blocks of tokens that stay in the cache, forward and backward: compiled by cpu_kernels.py at first use.
//
// The formulas, and the names, of softlinalg/_attention_blocks.py: C = exp(-|q - L|^2 / (2 l^2)), out = C X (E^T v). All that a block
// of tokens needs, from its exponents to the products with its features, is done before the next one is touched. Vectors are those
// of GCC and Clang, as wide as the machine's. Features are kept turned, (m, tokens) for each block, so that the lanes of a vector are
// tokens and no landmark count has to be padded. What the next block will read is asked for while this one is computed: the
// hardware does not foresee rows that lie apart. Sums over tokens are in the type of the tokens for a few blocks, in double beyond.

#include "_vectors.h"

#include <type_traits>
#include <utility>

// One array (batch, heads, rows, width) of unit stride in its last axis; strides in entries.
struct Tokens {
    void* data;
    int64_t batch, head, row;
};

// Layout known to cpu_kernels.py (class _Work). Flat arrays are contiguous, one member for each of batch x heads. Features of one
// head are blocks of BLOCK tokens, one after the other, each (m, tokens) with its tokens padded to whole vectors.
struct Work {
    int64_t heads, n, keys, m, d, e;
    int64_t features_apart, key_features_apart;  // entries from one head's features to the next one's; 0: they share their memory
    Tokens q, k, v, out, grad, dq, dv;
    void *center;        // (B, d)
    void *columns;       // (B, m, d + 2): factors of points, of their squares, and alone
    void *rows;          // (B, m, d): w / l^2
    void *features;      // (B, m n), n padded
    void *key_features;  // (B, m keys), keys padded
    double *moment;      // (B, m, e)
    double *x;           // (B, m, m)
    void *core;          // (B, m, e), X moment: it stands before grad in the gradient, too
    void *dmoment;       // (B, m, e), the same for v, and for dv
    void *w;             // (B, m, d): landmarks less the center
    double *total;       // (B, m, e): C^T grad
    double *dx;          // (B, m, m)
    double *dw;          // (B, m, d + 1): sums over tokens
    double *dlandmarks;  // (B, m, d), if all that they depend on is known when a head is done
    void *scratch;       // softlinalg_scratch_bytes, of one thread
    double lowest, precision;
    int32_t grad_counts, v_counts;  // which of core grad and dmoment v `pull` sums
};

namespace {

constexpr int TILE = 6;    // rows whose sums stay in registers, two vectors each
constexpr int BLOCK = 64;  // tokens in a block: its points, values and features fit in the first caches
constexpr int FLUSH = 12;  // blocks summed before they are added to a sum in double

template <typename T> inline int64_t whole_vectors(int64_t count) { return (count + lanes<T> - 1) / lanes<T> * lanes<T>; }

template <typename T> inline T total(Vec<T> x) {
    T sum = 0;
    for (int i = 0; i < lanes<T>; ++i) sum += x[i];
    return sum;
}

// Lines of memory that will be wanted soon, asked for a few at a time between other work.
class Ahead {
    const char *line = nullptr, *begin = nullptr;
    int64_t row = 0, rows = 0, width = 0;

  public:
    Ahead() = default;
    template <typename T>
    Ahead(const T* start, int64_t stride, int64_t count, int64_t entries)
        : line(reinterpret_cast<const char*>(start)), begin(line), row(stride * int64_t(sizeof(T))), rows(count), width(entries * int64_t(sizeof(T))) {}
    inline void ask(int count) {
        for (; count > 0 && rows > 0; --count) {
            __builtin_prefetch(line);
            line += 64;
            if (line - begin >= width) {
                begin += row;
                line = begin;
                --rows;
            }
        }
    }
};

// ------------------------------------------------------------------------------------------------- transposition
#if defined(__clang__) || __GNUC__ >= 12
template <typename V, int S, int L, int... l> inline void exchange(V& a, V& b, std::integer_sequence<int, l...>) {
    const V low = __builtin_shufflevector(a, b, (l & S ? L + l - S : l)...);
    b = __builtin_shufflevector(a, b, (l & S ? L + l : l + S)...);
    a = low;
}
template <typename T, int S> inline __attribute__((always_inline)) void turn_square(Vec<T> (&x)[lanes<T>]) {
    constexpr int L = lanes<T>;
    if constexpr (S < L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
            if (!(i & S)) exchange<Vec<T>, S, L>(x[i], x[i + S], std::make_integer_sequence<int, L>());
        turn_square<T, 2 * S>(x);
    }
}
#else
template <typename T, int> inline void turn_square(Vec<T> (&x)[lanes<T>]) {
    for (int i = 0; i < lanes<T>; ++i)
        for (int j = 0; j < i; ++j) {
            const T kept = x[i][j];
            x[i][j] = x[j][i];
            x[j][i] = kept;
        }
}
#endif

// Points (rows, d), less the center if there is one, as (d, apart) with zeros up to whole vectors, and their squares.
template <typename T>
inline void turn(const T* points, int64_t stride, const T* center, int64_t rows, int64_t d, T* turned, int64_t apart, T* squares) {
    constexpr int L = lanes<T>;
    for (int64_t r = 0; r < rows; r += L) {
        Vec<T> sum = {};
        for (int64_t c = 0; c < d; c += L) {
            Vec<T> x[L];
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) {
                x[i] = Vec<T>{};
                if (r + i < rows) x[i] = at(points + (r + i) * stride + c);
                if (center && r + i < rows) x[i] -= at(center + c);
            }
            turn_square<T, 1>(x);
#pragma GCC unroll 16
            for (int i = 0; i < L; ++i) {
                at(turned + (c + i) * apart + r) = x[i];
                sum += x[i] * x[i];
            }
        }
        if (squares) at(squares + r) = sum;
    }
}

// ------------------------------------------------------------------------------------------------------ products
template <typename T> struct Factor {
    const T* a;
    int64_t lda, depth;
    const T* b;
    int64_t ldb;
};

// acc += A B for R rows of A, or with TURNED of its transpose, and W vectors of columns of B.
template <typename T, int R, int W, bool TURNED>
inline __attribute__((always_inline)) void multiply(const T* a, int64_t lda, int64_t depth, const T* b, int64_t ldb, Vec<T> (&acc)[R][W]) {
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> right[W];
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) right[w] = at(b + k * ldb + w * lanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
            for (int w = 0; w < W; ++w) acc[r][w] += (TURNED ? a[k * lda + r] : a[r * lda + k]) * right[w];
        }
    }
}

// A1 B1 (+ A2 B2) tile by tile; start(row, column) gives what it is added to, finish(row, column, sum) takes each vector, and
// meanwhile() is called once for each tile.
template <typename T, int R, int W, bool TURNED, typename Start, typename Finish>
inline __attribute__((always_inline)) void tile(int64_t i, int64_t j, const Factor<T>& one, const Factor<T>* two, Start start, Finish finish) {
    Vec<T> acc[R][W];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) acc[r][w] = start(i + r, j + w * lanes<T>);
    }
    multiply<T, R, W, TURNED>(one.a + (TURNED ? i : i * one.lda), one.lda, one.depth, one.b + j, one.ldb, acc);
    if (two) multiply<T, R, W, TURNED>(two->a + (TURNED ? i : i * two->lda), two->lda, two->depth, two->b + j, two->ldb, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) finish(i + r, j + w * lanes<T>, acc[r][w]);
    }
}

// All rows but an odd last one, for W vectors of columns.
template <typename T, int W, bool TURNED, typename Start, typename Finish, typename Meanwhile>
inline void strip(int64_t rows, int64_t j, const Factor<T>& one, const Factor<T>* two, Start start, Finish finish, Meanwhile meanwhile) {
    int64_t i = 0;
    for (; i + TILE <= rows; i += TILE) {
        meanwhile();
        tile<T, TILE, W, TURNED>(i, j, one, two, start, finish);
    }
    for (; i + 4 <= rows; i += 4) tile<T, 4, W, TURNED>(i, j, one, two, start, finish);
    if (i + 2 <= rows) tile<T, 2, W, TURNED>(i, j, one, two, start, finish);
}

// One row: its few sums would wait for each other if it did not take many columns at once.
template <typename T, int W, bool TURNED, typename Start, typename Finish>
inline void single(int64_t i, int64_t j, int64_t width, const Factor<T>& one, const Factor<T>* two, Start start, Finish finish) {
    for (; j + W * lanes<T> <= width; j += W * lanes<T>) tile<T, 1, W, TURNED>(i, j, one, two, start, finish);
    if constexpr (W > 1) single<T, W / 2, TURNED>(i, j, width, one, two, start, finish);
}

template <typename T, bool TURNED, typename Start, typename Finish, typename Meanwhile>
inline void product(int64_t rows, int64_t width, const Factor<T>& one, const Factor<T>* two, Start start, Finish finish, Meanwhile meanwhile) {
    constexpr int L = lanes<T>;
    int64_t j = 0;
    for (; j + 2 * L <= width; j += 2 * L) strip<T, 2, TURNED>(rows, j, one, two, start, finish, meanwhile);
    if (j < width) strip<T, 1, TURNED>(rows, j, one, two, start, finish, meanwhile);
    if (rows % 2) single<T, 8, TURNED>(rows - 1, 0, width, one, two, start, finish);
}

constexpr auto nothing = [] {};

// sum (rows, width) += A B
template <typename T, typename Meanwhile>
inline void add_product(int64_t rows, int64_t width, const Factor<T>& factor, T* sum, Meanwhile meanwhile) {
    product<T, false>(rows, width, factor, nullptr, [=](int64_t i, int64_t j) { return at(sum + i * width + j); },
        [=](int64_t i, int64_t j, Vec<T> value) { at(sum + i * width + j) = value; }, meanwhile);
}

// Rows of `out` = A^T B for features A.
template <typename T, typename Meanwhile>
inline void write_product(int64_t rows, int64_t width, const Factor<T>& factor, T* out, int64_t stride, Meanwhile meanwhile) {
    product<T, true>(rows, width, factor, nullptr, [](int64_t, int64_t) { return Vec<T>{}; },
        [=](int64_t i, int64_t j, Vec<T> value) { at(out + i * stride + j) = value; }, meanwhile);
}

// --------------------------------------------------------------------------------------------------------- steps
template <typename T> inline T* place(const Tokens& x, const Work& work, int64_t head) {
    return static_cast<T*>(x.data) + (head / work.heads) * x.batch + (head % work.heads) * x.head;
}

template <typename T> inline T* member(void* x, int64_t head, int64_t entries) { return static_cast<T*>(x) + head * entries; }

constexpr int WIDEST = 128;  // of points and values
constexpr int LANDMARKS = 256;

template <typename T> struct Scratch {
    alignas(64) T turned[BLOCK * WIDEST];
    alignas(64) T turned_values[BLOCK * WIDEST];
    alignas(64) T z[BLOCK * WIDEST];
    alignas(64) T squares[BLOCK];
    alignas(64) T weights[BLOCK * LANDMARKS];
    alignas(64) T sum[LANDMARKS * WIDEST];
    alignas(64) T by_landmark[LANDMARKS * lanes<T>];
};

template <typename T> inline Scratch<T>& scratch_of(const Work& work) {
    return *reinterpret_cast<Scratch<T>*>((reinterpret_cast<uintptr_t>(work.scratch) + 63) & ~uintptr_t(63));
}

// Tokens of a block, and of the one after it.
struct Range {
    int64_t rows, next;
    static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
    Range(int64_t start, int64_t last) : rows(least(last - start, BLOCK)), next(least(last - start - rows, BLOCK)) {}
};

template <typename T> inline Ahead points_ahead(const Tokens& x, const Work& work, int64_t head, int64_t start, const Range& range, int64_t width) {
    return {place<T>(x, work, head) + (start + range.rows) * x.row, x.row, range.next, width};
}

template <typename T> inline Ahead features_ahead(const T* features, const Work& work, const Range& range) {
    return {features + work.m * whole_vectors<T>(range.rows), 0, range.next ? 1 : 0, work.m * whole_vectors<T>(range.next)};
}

// Features of a block, (m, rows padded).
template <typename T>
inline void write_features(const Work& work, const Tokens& points, int64_t head, int64_t start, const Range& range, T* features, Ahead also) {
    constexpr int AT_ONCE = 4;
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t d = work.d, m = work.m, padded = whole_vectors<T>(range.rows);
    const T *columns = member<T>(work.columns, head, m * (d + 2)), lowest = T(work.lowest), *squares = s.squares;
    turn<T>(place<T>(points, work, head) + start * points.row, points.row, member<T>(work.center, head, d), range.rows, d, s.turned, padded, s.squares);
    product<T, false>(m, padded, {columns, d + 2, d, s.turned, padded}, nullptr,
        [=](int64_t i, int64_t j) { return columns[i * (d + 2) + d + 1] + columns[i * (d + 2) + d] * at(squares + j); },
        [=](int64_t i, int64_t j, Vec<T> sum) { at(features + i * padded + j) = sum; }, nothing);
    Ahead coming = points_ahead<T>(points, work, head, start, range, d), place_of_next = features_ahead<T>(features, work, range);
    int64_t i = 0;
    for (; i + AT_ONCE * lanes<T> <= m * padded; i += AT_ONCE * lanes<T>) {
        exponentials<T, AT_ONCE, true>(features + i, lowest);
        coming.ask(2);
        place_of_next.ask(2);
        also.ask(2);
    }
    for (; i < m * padded; i += lanes<T>) exponentials<T, 1, true>(features + i, lowest);
}

template <typename T> void add_and_clear(T* sum, double* total, int64_t rows, int64_t width, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) {
            total[r * stride + c] += sum[r * width + c];
            sum[r * width + c] = 0;
        }
}

// Features of the keys and their moment with the values.
template <typename T> void gather(const Work& work, int64_t head, int64_t first, int64_t last, double* moment) {
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t e = work.e;
    const Tokens& points = work.k.data ? work.k : work.q;
    const T* v = place<T>(work.v, work, head);
    std::memset(s.sum, 0, sizeof(T) * work.m * e);
    int held = 0;
    for (int64_t start = first; start < last; start += BLOCK) {
        const Range range(start, last);
        T* features = member<T>(work.key_features, head, work.key_features_apart) + start * work.m;
        write_features<T>(work, points, head, start, range, features, points_ahead<T>(work.v, work, head, start, range, e));
        add_product<T>(work.m, e, {features, whole_vectors<T>(range.rows), range.rows, v + start * work.v.row, work.v.row}, s.sum, nothing);
        if (++held == FLUSH || !range.next) {
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
            for (int64_t c = 0; c < e; c += lanes<double>) at(row + c) += x[i * m + j] * at(moment + j * e + c);
        for (int64_t c = 0; c < e; ++c) core[i * e + c] = T(row[c]);
    }
}

// out = C core, with the features of queries where they are not those of the keys.
template <typename T> void scatter(const Work& work, int64_t head, int64_t first, int64_t last) {
    const int64_t m = work.m, e = work.e, stride = work.out.row;
    const T* core = member<T>(work.core, head, m * e);
    for (int64_t start = first; start < last; start += BLOCK) {
        const Range range(start, last);
        T* features = member<T>(work.features, head, work.features_apart) + start * m;
        if (work.k.data) write_features<T>(work, work.q, head, start, range, features, Ahead());
        Ahead coming = features_ahead<T>(features, work, range), space = points_ahead<T>(work.out, work, head, start, range, e);
        write_product<T>(range.rows, e, {features, whole_vectors<T>(range.rows), m, core, e}, place<T>(work.out, work, head) + start * stride,
            stride, [&] { coming.ask(10); space.ask(8); });
    }
}

// C^T grad.
template <typename T> void gather_grad(const Work& work, int64_t head, int64_t first, int64_t last, double* total) {
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t e = work.e;
    const T* grad = place<T>(work.grad, work, head);
    std::memset(s.sum, 0, sizeof(T) * work.m * e);
    int held = 0;
    for (int64_t start = first; start < last; start += BLOCK) {
        const Range range(start, last);
        const T* features = member<T>(work.features, head, work.features_apart) + start * work.m;
        Ahead coming = features_ahead<T>(features, work, range), also = points_ahead<T>(work.grad, work, head, start, range, e);
        add_product<T>(work.m, e, {features, whole_vectors<T>(range.rows), range.rows, grad + start * work.grad.row, work.grad.row}, s.sum,
            [&] { coming.ask(12); also.ask(8); });
        if (++held == FLUSH || !range.next) {
            add_and_clear<T>(s.sum, total, work.m, e, e);
            held = 0;
        }
    }
}

// core = X moment and dmoment = X^T total in double, dx = total moment^T.
template <typename T> void join_grad(const Work& work, int64_t head) {
    const int64_t m = work.m, e = work.e;
    const double *x = work.x + head * m * m, *moment = work.moment + head * m * e, *total = work.total + head * m * e;
    double* dx = work.dx + head * m * m;
    T* dmoment = member<T>(work.dmoment, head, m * e);
    join<T>(work, head);
    for (int64_t i = 0; i < m; ++i) {
        double row[WIDEST] = {};
        for (int64_t j = 0; j < m; ++j)
            for (int64_t c = 0; c < e; c += lanes<double>) at(row + c) += x[j * m + i] * at(total + j * e + c);
        for (int64_t c = 0; c < e; ++c) dmoment[i * e + c] = T(row[c]);
        for (int64_t j = 0; j < m; ++j) {
            Vec<double> sum = {};
            for (int64_t c = 0; c < e; c += lanes<double>) sum += at(total + i * e + c) * at(moment + j * e + c);
            dx[i * m + j] = ::total<double>(sum);
        }
    }
}

// (H^T z - colsum(H) w) / l^2
template <typename T> void landmark_gradient(const Work& work, int64_t head) {
    const int64_t m = work.m, d = work.d;
    const T* w = member<T>(work.w, head, m * d);
    const double* dw = work.dw + head * m * (d + 1);
    double* out = work.dlandmarks + head * m * d;
    for (int64_t j = 0; j < m; ++j)
        for (int64_t c = 0; c < d; ++c) out[j * d + c] = (dw[j * (d + 1) + c] - dw[j * (d + 1) + d] * double(w[j * d + c])) * work.precision;
}

// H = C * (grad core^T + v dmoment^T); dq = (H w - rowsum(H) z) / l^2; dv = C dmoment; dw += [H^T z, colsum(H)].
template <typename T> void pull(const Work& work, int64_t head, int64_t first, int64_t last, double* dw) {
    Scratch<T>& s = scratch_of<T>(work);
    const int64_t m = work.m, d = work.d, e = work.e;
    const T *all = member<T>(work.features, head, work.features_apart), *w = member<T>(work.rows, head, m * d);
    const T *center = member<T>(work.center, head, d), *core = member<T>(work.core, head, m * e), *dmoment = member<T>(work.dmoment, head, m * e);
    const Vec<T> precision = Vec<T>{} + T(work.precision);
    std::memset(s.sum, 0, sizeof(T) * m * d);
    std::memset(s.by_landmark, 0, sizeof(s.by_landmark));
    int held = 0;
    for (int64_t start = first; start < last; start += BLOCK) {
        const Range range(start, last);
        const int64_t rows = range.rows, padded = whole_vectors<T>(rows);
        const T* features = all + start * m;
        const T* q = place<T>(work.q, work, head) + start * work.q.row;
        if (work.grad_counts) turn<T>(place<T>(work.grad, work, head) + start * work.grad.row, work.grad.row, nullptr, rows, e, s.turned, padded, nullptr);
        if (work.v_counts) turn<T>(place<T>(work.v, work, head) + start * work.v.row, work.v.row, nullptr, rows, e, s.turned_values, padded, nullptr);
        const Factor<T> by_grad = {core, e, e, s.turned, padded}, by_v = {dmoment, e, e, s.turned_values, padded};
        T *weights = s.weights, *by_token = s.squares, *by_landmark = s.by_landmark;
        std::memset(by_token, 0, sizeof(T) * padded);
        Ahead coming = features_ahead<T>(features, work, range), points = points_ahead<T>(work.q, work, head, start, range, d);
        Ahead grads = work.grad_counts ? points_ahead<T>(work.grad, work, head, start, range, e) : Ahead();
        Ahead values = work.v_counts ? points_ahead<T>(work.v, work, head, start, range, e) : Ahead();
        product<T, false>(m, padded, work.grad_counts ? by_grad : by_v, work.grad_counts && work.v_counts ? &by_v : nullptr,
            [](int64_t, int64_t) { return Vec<T>{}; },
            [=](int64_t i, int64_t j, Vec<T> sum) {
                sum *= at(features + i * padded + j);
                at(weights + i * padded + j) = sum;
                at(by_token + j) += sum;
                at(by_landmark + i * lanes<T>) += sum;
            },
            [&] {
                coming.ask(6);
                points.ask(4);
                grads.ask(4);
                values.ask(4);
            });
        if (work.v_counts)
            write_product<T>(rows, e, {features, padded, m, dmoment, e}, place<T>(work.dv, work, head) + start * work.dv.row, work.dv.row, nothing);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < d; c += lanes<T>) at(s.z + r * d + c) = at(q + r * work.q.row + c) - at(center + c);
        add_product<T>(m, d, {weights, padded, rows, s.z, d}, s.sum, nothing);
        for (int64_t r = 0; r < padded; r += lanes<T>) at(by_token + r) *= precision;
        const int64_t stride = work.dq.row;
        T* dq = place<T>(work.dq, work, head) + start * stride;
        const T* z = s.z;
        product<T, true>(rows, d, {weights, padded, m, w, d}, nullptr, [=](int64_t i, int64_t j) { return -(by_token[i] * at(z + i * d + j)); },
            [=](int64_t i, int64_t j, Vec<T> sum) { at(dq + i * stride + j) = sum; }, nothing);
        if (++held == FLUSH || !range.next) {
            add_and_clear<T>(s.sum, dw, m, d, d + 1);
            for (int64_t j = 0; j < m; ++j) {
                dw[j * (d + 1) + d] += total<T>(at(by_landmark + j * lanes<T>));
                at(by_landmark + j * lanes<T>) = Vec<T>{};
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

// A head's features are read twice while they are in the cache.
template <typename T> void backward(const Work& work, int64_t first, int64_t last) {
    for (int64_t head = first; head < last; ++head) {
        gather_grad<T>(work, head, 0, work.n, work.total + head * work.m * work.e);
        join_grad<T>(work, head);
        pull<T>(work, head, 0, work.n, work.dw + head * work.m * (work.d + 1));
        if (work.dlandmarks) landmark_gradient<T>(work, head);
    }
}
}  // namespace

// A step of one head, over rows [first, last), `first` a multiple of BLOCK: 0 gather, 1 join, 2 scatter, 3 gather_grad, 4 pull;
// 5 join_grad; `total` is where 0, 3 and 4 add. Steps 6 and 7 are all of forward and backward for heads [first, last). Layout known to cpu_kernels.py (class _Call).
struct Call {
    const Work* work;
    int64_t kind, head, first, last;
    double* total;
};

template <typename T> static void run(const Call* calls, int64_t count) {
    for (const Call* call = calls; call < calls + count; ++call) {
        const Work& work = *call->work;
        switch (call->kind) {
            case 0: gather<T>(work, call->head, call->first, call->last, call->total); break;
            case 1: join<T>(work, call->head); break;
            case 2: scatter<T>(work, call->head, call->first, call->last); break;
            case 3: gather_grad<T>(work, call->head, call->first, call->last, call->total); break;
            case 4: pull<T>(work, call->head, call->first, call->last, call->total); break;
            case 5: join_grad<T>(work, call->head); break;
            case 6: forward<T>(work, call->first, call->last); break;
            default: backward<T>(work, call->first, call->last);
        }
    }
}

// Of the OpenMP library that PyTorch itself uses, whose threads are awake between its operations; others would wait for them.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
    int (*number)();
    int (*count)();
};

// Calls in equal parts, one part for each thread.
struct Team {
    const Call* calls;
    int64_t each, threads;
    const OpenMP* openmp;
};

template <typename T> static void run_member(void* given) {
    const Team& team = *static_cast<const Team*>(given);
    for (int64_t i = team.openmp->number(); i < team.threads; i += team.openmp->count()) run<T>(team.calls + i * team.each, team.each);
}

template <typename T> static void run_team(const Call* calls, int64_t each, int64_t threads, const OpenMP* openmp) {
    if (threads == 1 || !openmp) return run<T>(calls, each * threads);
    Team team = {calls, each, threads, openmp};
    openmp->parallel(run_member<T>, &team, unsigned(threads), 0);
}

extern "C" {
void softlinalg_run_float(const Call* calls, int64_t each, int64_t threads, const OpenMP* openmp) {
    run_team<float>(calls, each, threads, openmp);
}
void softlinalg_run_double(const Call* calls, int64_t each, int64_t threads, const OpenMP* openmp) {
    run_team<double>(calls, each, threads, openmp);
}
int32_t softlinalg_vector_bytes() { return BYTES; }
int64_t softlinalg_block() { return BLOCK; }
int64_t softlinalg_work_bytes() { return sizeof(Work); }
int64_t softlinalg_scratch_bytes() { return sizeof(Scratch<double>) + 64; }
}

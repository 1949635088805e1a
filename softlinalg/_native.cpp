// What NumPy and LAPACK do slowly on small pieces, compiled by _native.py: exponentials of blocks that are in the cache, nearest
// landmarks, and inverses of small symmetric positive definite matrices with the evidence for their certificate.

#include "_blocked_inverse.h"
#include "_vectors.h"

#include <cmath>

namespace {

// One lane of a vector for each matrix: as many matrices at once as a vector holds doubles, with the operations of one. Cholesky's
// factor B = L L^T, then N = L^-1, then X = N^T N, the order of LAPACK's potrf and potri, so that theorem C4 of the certificates
// holds. All three are products of rows with rows, in tiles of 3 x 3 that stay in registers. Whatever fails becomes NaN.
typedef Vec<double> V;
constexpr int LANES = lanes<double>;
constexpr int TILE = 3;
constexpr int64_t MOST_IN_LANES = 200;  // rows: beyond, the matrices of one vector leave the caches, and one alone takes as long as all

inline V root(V x) {
    for (int i = 0; i < LANES; ++i) x[i] = std::sqrt(x[i]);
    return x;
}

// acc += A B^T for TILE rows of each, entries [first, last)
inline __attribute__((always_inline)) void multiply(const V* a, const V* b, int64_t apart, int64_t first, int64_t last, V (&acc)[TILE][TILE]) {
    for (int64_t k = first; k < last; ++k) {
        const V b0 = b[k], b1 = b[apart + k], b2 = b[2 * apart + k];
#pragma GCC unroll 3
        for (int r = 0; r < TILE; ++r) {
            const V left = a[r * apart + k];
            acc[r][0] += left * b0;
            acc[r][1] += left * b1;
            acc[r][2] += left * b2;
        }
    }
}

// Memory of one group: three square arrays of p x p vectors (p is m up to whole tiles), and two vectors for each row.
struct Group {
    int64_t m, p;
    V *b, *factor, *inverse, *reciprocals, *sums;
};

// B = A + ridge I in every lane, whole; lanes without a matrix repeat the first. Beyond m the identity.
template <typename T> void load(const Group& g, const T* a, const double* ridge, int64_t count) {
    const int64_t m = g.m, p = g.p;
    const T* from[LANES];
    V shift;
    for (int lane = 0; lane < LANES; ++lane) {
        const int64_t member = lane < count ? lane : 0;
        from[lane] = a + member * m * m;
        shift[lane] = ridge[member];
    }
    for (int64_t i = 0; i < p; ++i) {
        for (int64_t j = 0; j < i; ++j) {
            V x = {};
            if (i < m)
                for (int lane = 0; lane < LANES; ++lane) x[lane] = double(from[lane][i * m + j]);
            g.b[i * p + j] = g.b[j * p + i] = x;
        }
        V x = V{} + 1.0;
        if (i < m) {
            for (int lane = 0; lane < LANES; ++lane) x[lane] = double(from[lane][i * m + i]);
            x += shift;
        }
        g.b[i * p + i] = x;
    }
}

// The lower triangle L of `factor`, and the reciprocals of its diagonal.
void factorise(const Group& g) {
    const int64_t p = g.p;
    V *l = g.factor, *reciprocals = g.reciprocals;
    for (int64_t j = 0; j < p; j += TILE) {
        V* row = l + j * p;
        for (int64_t i = j; i < p; i += TILE) {
            V s[TILE][TILE] = {};
            multiply(l + i * p, row, p, 0, j, s);
#pragma GCC unroll 3
            for (int r = 0; r < TILE; ++r)
#pragma GCC unroll 3
                for (int c = 0; c < TILE; ++c) s[r][c] = g.b[(i + r) * p + j + c] - s[r][c];
            if (i == j) {
                for (int c = 0; c < TILE; ++c) {
                    for (int k = 0; k < c; ++k) s[c][c] -= s[c][k] * s[c][k];
                    s[c][c] = root(s[c][c]);
                    reciprocals[j + c] = 1.0 / s[c][c];
                    for (int r = c + 1; r < TILE; ++r) {
                        for (int k = 0; k < c; ++k) s[r][c] -= s[r][k] * s[c][k];
                        s[r][c] *= reciprocals[j + c];
                    }
                }
            } else {
                const V l10 = row[p + j], l20 = row[2 * p + j], l21 = row[2 * p + j + 1];
#pragma GCC unroll 3
                for (int r = 0; r < TILE; ++r) {
                    s[r][0] *= reciprocals[j];
                    s[r][1] = (s[r][1] - s[r][0] * l10) * reciprocals[j + 1];
                    s[r][2] = (s[r][2] - s[r][0] * l20 - s[r][1] * l21) * reciprocals[j + 2];
                }
            }
            for (int r = 0; r < TILE; ++r)
                for (int c = 0; c < TILE; ++c)
                    if (i > j || c <= r) l[(i + r) * p + j + c] = s[r][c];
        }
    }
}

// N = L^-1 by columns: row j of `inverse` is column j of N, from its diagonal on, with zeros before it in its tile.
void invert_factor(const Group& g) {
    const int64_t p = g.p;
    const V *l = g.factor, *reciprocals = g.reciprocals;
    V* n = g.inverse;
    for (int64_t i = 0; i < p; i += TILE) {
        for (int64_t j = 0; j <= i; j += TILE) {
            V s[TILE][TILE] = {};
            if (j < i) multiply(l + i * p, n + j * p, p, j, i, s);
            for (int c = 0; c < TILE; ++c) {
                for (int r = 0; r < TILE; ++r) {
                    if (i == j && r <= c) {
                        s[r][c] = r == c ? reciprocals[i + r] : V{};
                    } else {
                        for (int k = 0; k < r; ++k) s[r][c] += l[(i + r) * p + i + k] * s[k][c];
                        s[r][c] = -s[r][c] * reciprocals[i + r];
                    }
                    n[(j + c) * p + i + r] = s[r][c];
                }
            }
        }
    }
}

// X = N^T N, whole, where L was.
void multiply_inverses(const Group& g) {
    const int64_t p = g.p;
    const V* n = g.inverse;
    V* x = g.factor;
    for (int64_t i = 0; i < p; i += TILE) {
        for (int64_t j = 0; j <= i; j += TILE) {
            V s[TILE][TILE] = {};
            multiply(n + i * p, n + j * p, p, i, p, s);
            for (int r = 0; r < TILE; ++r)
                for (int c = 0; c < TILE; ++c)
                    if (i > j || c <= r) x[(i + r) * p + j + c] = x[(j + c) * p + i + r] = s[r][c];
        }
    }
}

inline V magnitude(V x) { return x < 0.0 ? -x : x; }
inline V smaller(V x, V y) { return x < y ? x : y; }

// The traces of B and X, the larger |B X v - v| for v of ones and of alternating signs, and the smaller of |X|_F and the largest sum
// of a row's absolute values, rounded upwards.
void look_at(const Group& g, V& trace_b, V& trace_x, V& worst, V& norm) {
    const int64_t m = g.m, p = g.p;
    const V *b = g.b, *x = g.factor;
    V *sums = g.sums, *differences = g.sums + p, by_ones = {}, by_signs = {}, squares = {}, longest = {};
    trace_b = trace_x = V{};
    for (int64_t i = 0; i < m; ++i) {
        V even = {}, odd = {}, row = {}, length = {};
        for (int64_t j = 0; j < m; ++j) {
            const V entry = x[i * p + j];
            (j % 2 ? odd : even) += entry;
            row += entry * entry;
            length += magnitude(entry);
        }
        squares += row;
        longest = longest < length ? length : longest;
        sums[i] = even + odd;
        differences[i] = even - odd;
        trace_b += b[i * p + i];
        trace_x += x[i * p + i];
    }
    for (int64_t i = 0; i < m; ++i) {
        V one = {}, two = {};
        for (int64_t j = 0; j < m; ++j) {
            one += b[i * p + j] * sums[j];
            two += b[i * p + j] * differences[j];
        }
        one -= 1.0;
        two -= i % 2 ? -1.0 : 1.0;
        by_ones += one * one;
        by_signs += two * two;
    }
    for (int lane = 0; lane < LANES; ++lane)  // NaN must survive: it is what a failed member has
        worst[lane] = std::sqrt(by_ones[lane] > by_signs[lane] || std::isnan(by_ones[lane]) ? by_ones[lane] : by_signs[lane]);
    norm = smaller(root(squares), longest) * (1.0 + 8e-16 * double(m));
}

template <typename T> void store(const Group& g, T* out, int64_t count) {
    const int64_t m = g.m, p = g.p;
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < m; ++j) {
            const V x = g.factor[i * p + j];
            for (int lane = 0; lane < LANES; ++lane)
                if (lane < count) out[lane * m * m + i * m + j] = T(x[lane]);
        }
}

template <typename T> void invert(const T* a, const double* ridge, int64_t batch, int64_t m, T* out, double* evidence, void* scratch) {
    const int64_t p = (m + TILE - 1) / TILE * TILE;
    V* memory = reinterpret_cast<V*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t(63));
    if (m > MOST_IN_LANES) {
        for (int64_t i = 0; i < batch; ++i)
            blocked::invert(a + i * m * m, ridge[i], m, batch, out + i * m * m, evidence + i, reinterpret_cast<double*>(memory));
        return;
    }
    const Group g = {m, p, memory, memory + p * p, memory + 2 * p * p, memory + 3 * p * p, memory + 3 * p * p + p};
    for (int64_t first = 0; first < batch; first += LANES) {
        const int64_t count = batch - first < LANES ? batch - first : LANES;
        load(g, a + first * m * m, ridge + first, count);
        factorise(g);
        invert_factor(g);
        multiply_inverses(g);
        V found[4];
        look_at(g, found[0], found[1], found[2], found[3]);
        for (int kind = 0; kind < 4; ++kind)
            for (int64_t lane = 0; lane < count; ++lane) evidence[kind * batch + first + lane] = found[kind][lane];
        store(g, out + first * m * m, count);
    }
}

// ------------------------------------------------------------------------------------------- one step of Newton
// A row-major matrix into every lane, as it is or turned; beyond m zeros. Lanes without a matrix repeat the first.
template <bool TURNED, typename T> void spread(const Group& g, const T* from, int64_t count, V* to) {
    const int64_t m = g.m, p = g.p;
    for (int64_t i = 0; i < p; ++i)
        for (int64_t j = 0; j < p; ++j) {
            V x = {};
            if (i < m && j < m)
                for (int lane = 0; lane < LANES; ++lane) x[lane] = double(from[(lane < count ? lane : 0) * m * m + i * m + j]);
            to[TURNED ? j * p + i : i * p + j] = x;
        }
}

// Of all p^2 entries, rounded upwards, squares that underflow included.
inline V upwards(V norm, int64_t p) { return norm * (1.0 + 8e-16 * double(p)) + 1.5e-154 * double(p); }

inline V frobenius(const V* x, int64_t p) {
    V sum = {};
    for (int64_t i = 0; i < p; ++i) {
        V row = {};
        for (int64_t j = 0; j < p; ++j) row += x[i * p + j] * x[i * p + j];
        sum += row;
    }
    return upwards(root(sum), p);
}

// rows_i(A) . rows_j(B) for all i, j
template <typename Use> inline __attribute__((always_inline)) void all_products(const V* a, const V* b, int64_t p, Use use) {
    for (int64_t i = 0; i < p; i += TILE)
        for (int64_t j = 0; j < p; j += TILE) {
            V s[TILE][TILE] = {};
            multiply(a + i * p, b + j * p, p, 0, p, s);
            for (int r = 0; r < TILE; ++r)
                for (int c = 0; c < TILE; ++c) use(i + r, j + c, s[r][c]);
        }
}

// X' = X - X D, D = B X - I, then symmetrised, for symmetric B. `sizes` (5, batch) bound the Frobenius norms of B, X, D, X D and
// of X' before it is symmetrised.
template <typename T> void correct(const double* b, const T* x, int64_t batch, int64_t m, double* out, double* sizes, void* scratch) {
    const int64_t p = (m + TILE - 1) / TILE * TILE;
    V* memory = reinterpret_cast<V*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t(63));
    V *left = memory, *turned = memory + p * p, *defect = memory + 2 * p * p;  // B, later X; X^T, later X'; D^T
    const Group g = {m, p, nullptr, turned, nullptr, nullptr, nullptr};
    for (int64_t first = 0; first < batch; first += LANES) {
        const int64_t count = batch - first < LANES ? batch - first : LANES;
        V found[5];
        spread<false>(g, b + first * m * m, count, left);
        spread<true>(g, x + first * m * m, count, turned);
        found[0] = frobenius(left, p);
        found[1] = frobenius(turned, p);
        all_products(turned, left, p, [=](int64_t j, int64_t i, V sum) { defect[j * p + i] = i == j && i < m ? sum - 1.0 : sum; });
        found[2] = frobenius(defect, p);
        spread<false>(g, x + first * m * m, count, left);
        V squares[TILE] = {};
        all_products(left, defect, p, [=, &squares](int64_t i, int64_t j, V sum) {
            squares[i % TILE] += sum * sum;
            turned[i * p + j] = left[i * p + j] - sum;
        });
        found[3] = upwards(root(squares[0] + squares[1] + squares[2]), p * p);
        found[4] = frobenius(turned, p);
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < i; ++j) turned[i * p + j] = turned[j * p + i] = (turned[i * p + j] + turned[j * p + i]) * 0.5;
        for (int kind = 0; kind < 5; ++kind)
            for (int64_t lane = 0; lane < count; ++lane) sizes[kind * batch + first + lane] = found[kind][lane];
        store(g, out + first * m * m, count);
    }
}

// ------------------------------------------------------------------------------------------- few points, many calls
// A few dozen points make a dozen operations of NumPy, each of which takes longer to call than to compute.

// Exponents of row i of a kernel matrix from column j on, W vectors of them.
template <int W>
inline void exponents_of_row(const double* z, const double* squares, int64_t p, int64_t d, int64_t i, int64_t j, double* to) {
    V sum[W] = {};
    for (int64_t c = 0; c < d; ++c)
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) sum[w] += z[c * p + i] * at(z + c * p + j + w * LANES);
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) at(to + w * LANES) = squares[i] + at(squares + j + w * LANES) + sum[w];
}

// Gaussian kernel matrices of points (m, d) less their mean, times `scale`, in double: exactly symmetric, with a unit diagonal; zero
// where the exponent is <= lowest. False where the square of a point is above `limit`. `memory` holds (m + 8) (d + 2) doubles.
template <typename T>
bool kernel_matrix(const T* points, int64_t m, int64_t d, double scale, double limit, double lowest, double* out, double* memory) {
    constexpr int AT_ONCE = 4;
    const int64_t p = (m + LANES - 1) / LANES * LANES;
    double *z = memory, *squares = z + d * p, *mean = squares + p;  // z is (d, p): the lanes of a vector are points
    std::memset(memory, 0, sizeof(double) * (d * p + p + d));
    for (int64_t i = 0; i < m; ++i)
        for (int64_t c = 0; c < d; ++c) mean[c] += double(points[i * d + c]);
    for (int64_t c = 0; c < d; ++c) mean[c] /= double(m);
    for (int64_t i = 0; i < m; ++i) {
        double sum = 0;
        for (int64_t c = 0; c < d; ++c) {
            const double moved = (double(points[i * d + c]) - mean[c]) * scale;
            z[c * p + i] = moved;
            sum += moved * moved;
        }
        if (sum > limit) return false;
        squares[i] = -0.5 * sum;
    }
    for (int64_t i = 0; i < m; ++i) {
        double* row = out + i * m;
        int64_t j = 0;
        for (; j < i && j + AT_ONCE * LANES <= m; j += AT_ONCE * LANES) exponents_of_row<AT_ONCE>(z, squares, p, d, i, j, row + j);
        for (; j < i && j + LANES <= m; j += LANES) exponents_of_row<1>(z, squares, p, d, i, j, row + j);
        if (j < i) {
            double last[LANES];
            exponents_of_row<1>(z, squares, p, d, i, j, last);
            std::memcpy(row + j, last, sizeof(double) * (m - j));
        }
        exponentials_of<double, false>(row, i, lowest);
        for (int64_t k = 0; k < i; ++k) out[k * m + i] = row[k];
        row[i] = 1.0;
    }
    return true;
}

// Gradient of sum(grad * X), X = (W + ridge I)^-1, W the kernel matrix of points (m, d): with S = X (grad + grad^T) X / 2 and
// H = -(S + S^T) * W it is (H z - rowsum(H) z) / l^2, z the points less their mean. `memory` holds 3 m p + (m + 2) q doubles, p and q
// being m and d up to whole vectors.
template <typename T>
void inverse_vjp(
    const double* x, const double* grad, const double* w, const T* points, int64_t m, int64_t d, double precision, double* out, double* memory) {
    const int64_t p = (m + LANES - 1) / LANES * LANES, q = (d + LANES - 1) / LANES * LANES;
    double *right = memory, *slope = right + m * p, *left = slope + m * p, *z = left + m * p, *mean = z + m * q, *row = mean + q;
    std::memset(memory, 0, sizeof(double) * (3 * m * p + (m + 2) * q));
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < m; ++j) {
            right[i * p + j] = x[i * m + j];
            slope[i * p + j] = 0.5 * (grad[i * m + j] + grad[j * m + i]);
        }
    const auto add_product = [m, p](const double* a, const double* b, double* sum) {
        for (int64_t i = 0; i < m; ++i)
            for (int64_t k = 0; k < m; ++k)
                for (int64_t c = 0; c < p; c += LANES) at(sum + i * p + c) += a[i * p + k] * at(b + k * p + c);
    };
    add_product(right, slope, left);
    std::memset(slope, 0, sizeof(double) * m * p);
    add_product(left, right, slope);
    for (int64_t i = 0; i < m; ++i)
        for (int64_t c = 0; c < d; ++c) mean[c] += double(points[i * d + c]);
    for (int64_t i = 0; i < m; ++i)
        for (int64_t c = 0; c < d; ++c) z[i * q + c] = double(points[i * d + c]) - mean[c] / double(m);
    for (int64_t i = 0; i < m; ++i) {
        double sum = 0;
        std::memset(row, 0, sizeof(double) * q);
        for (int64_t j = 0; j < m; ++j) {
            const double weight = -(slope[i * p + j] + slope[j * p + i]) * w[i * m + j];
            for (int64_t c = 0; c < q; c += LANES) at(row + c) += weight * at(z + j * q + c);
            sum += weight;
        }
        for (int64_t c = 0; c < d; ++c) out[i * d + c] = (row[c] - sum * z[i * q + c]) * precision;
    }
}

// What exponents need of landmarks (m, d), in their type: their mean, themselves less that, the squares s of that times `scale`,
// [w / l^2, 1 / l^2, -s / 2], and [w / l^2, -1 / (2 l^2), -s / 2] in units.
template <typename T>
void factors(const T* points, int64_t m, int64_t d, T scale, T precision, T unit, T* center, T* w, T* squares, T* rows, T* columns) {
    for (int64_t c = 0; c < d; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < m; ++i) sum += double(points[i * d + c]);
        center[c] = T(sum / double(m));
    }
    for (int64_t i = 0; i < m; ++i) {
        T *row = rows + i * (d + 2), *column = columns + i * (d + 2), sum = 0;
        for (int64_t c = 0; c < d; ++c) {
            const T moved = points[i * d + c] - center[c], scaled = moved * scale;
            w[i * d + c] = moved;
            row[c] = scaled * scale;
            column[c] = row[c] * unit;
            sum += scaled * scaled;
        }
        squares[i] = sum;
        row[d] = precision;
        row[d + 1] = -sum / 2;
        column[d] = -precision / 2 * unit;
        column[d + 1] = row[d + 1] * unit;
    }
}

// Bound of the relative error of X by theorem C4, as `judge_cholesky` in _certificates_cholesky.py; infinite where nothing is certain.
// `gamma` is 8 gamma_(m + 2).
double relative_error(double trace_b, double trace_x, double worst, double norm, double gamma, int64_t m) {
    const double product = trace_b * trace_x;
    if (!(product >= 0 && trace_x > 0 && norm < INFINITY)) return INFINITY;
    const double first = gamma * (trace_b * norm + 2 * std::sqrt(product) + double(m));
    if (!(first <= 0.125)) return INFINITY;
    const double relative = first / (1 - 4 * first);
    return worst <= std::sqrt(double(m)) * trace_b * norm * relative ? relative : INFINITY;
}

// All that attention needs of batches of landmarks (m, d): their kernel matrices W, X = (W + ridge I)^-1 with its evidence, and their
// factors. False where a landmark is beyond `limit` (in double) or `narrow` (in their type), or where the relative error of an inverse,
// and `rounding` times its norm, is not certainly within `tol`. `memory` holds (m + 8) (d + 2) + batch (m + 1) doubles, `scratch` what
// `invert` needs.
template <typename T>
bool landmarks(const T* points, int64_t batch, int64_t m, int64_t d, double ridge, double scale, double unit, double limit, double narrow,
    double lowest, double gamma, double rounding, double tol, double* w, double* x, double* evidence, T* center, T* moved, T* rows, T* columns,
    double* memory, void* scratch) {
    double* ridges = memory + (m + 8) * (d + 2);
    T* squares = reinterpret_cast<T*>(ridges + batch);
    for (int64_t i = 0; i < batch; ++i) {
        if (!kernel_matrix(points + i * m * d, m, d, scale, limit, lowest, w + i * m * m, memory)) return false;
        factors(points + i * m * d, m, d, T(scale), T(scale * scale), T(unit), center + i * d, moved + i * m * d, squares,
            rows + i * m * (d + 2), columns + i * m * (d + 2));
        for (int64_t j = 0; j < m; ++j)
            if (squares[j] > T(narrow)) return false;
        ridges[i] = ridge;
    }
    invert(w, ridges, batch, m, x, evidence, scratch);
    for (const double* e = evidence; e < evidence + batch; ++e)
        if (!(relative_error(e[0], e[batch], e[2 * batch], e[3 * batch], gamma, m) + rounding * e[3 * batch] <= tol)) return false;
    return true;
}

// ---------------------------------------------------------------------------------------------------- nearest landmarks
// Of each row of products x.l (rows, m): the smallest |l|^2 / 2 - x.l, and the first landmark that is as near as that but for slack. One
// visit to each product; no multiplication is joined with a subtraction, so the bits are those of separate operations.
template <typename T>
void nearest(const T* products, int64_t rows, int64_t m, const T* half, const T* slack_of_half, const T* slack_of_row, int64_t* label, T* best) {
    constexpr int W = lanes<T>;
    for (int64_t i = 0; i < rows; ++i) {
        const T* row = products + i * m;
        T least = half[0] - row[0];
        int64_t j = 0;
        if (m >= W) {
            Vec<T> smallest = at(half) - at(row);
            for (j = W; j + W <= m; j += W) {
                const Vec<T> score = at(half + j) - at(row + j);
                smallest = score < smallest ? score : smallest;
            }
            for (int lane = 0; lane < W; ++lane) least = smallest[lane] < least ? smallest[lane] : least;
        }
        for (; j < m; ++j) least = half[j] - row[j] < least ? half[j] - row[j] : least;
        const T limit = least + slack_of_row[i];
        int64_t first = 0;
        while (first < m && !((half[first] - row[first]) - slack_of_half[first] <= limit)) ++first;
        label[i] = first < m ? first : 0;
        best[i] = least;
    }
}
}  // namespace

// All arrays are contiguous; those of one matrix or of one set of points follow one another.
extern "C" {
void softlinalg_exp_float(float* p, int64_t rows, int64_t width, int64_t apart, double lowest) {
    for (int64_t i = 0; i < rows; ++i) exponentials_of<float, false>(p + i * apart, width, float(lowest));
}
void softlinalg_exp_double(double* p, int64_t rows, int64_t width, int64_t apart, double lowest) {
    for (int64_t i = 0; i < rows; ++i) exponentials_of<double, false>(p + i * apart, width, lowest);
}
// `a` and `out` (batch, m, m), `ridge` (batch), `evidence` (4, batch): traces of B and X, the miss, a norm of X.
void softlinalg_invert_float(const float* a, const double* ridge, int64_t batch, int64_t m, float* out, double* evidence, void* scratch) {
    invert(a, ridge, batch, m, out, evidence, scratch);
}
void softlinalg_invert_double(const double* a, const double* ridge, int64_t batch, int64_t m, double* out, double* evidence, void* scratch) {
    invert(a, ridge, batch, m, out, evidence, scratch);
}
// `b` (batch, m, m), exactly symmetric, `x` and `out` likewise, `sizes` (5, batch).
void softlinalg_correct_float(const double* b, const float* x, int64_t batch, int64_t m, double* out, double* sizes, void* scratch) {
    correct(b, x, batch, m, out, sizes, scratch);
}
void softlinalg_correct_double(const double* b, const double* x, int64_t batch, int64_t m, double* out, double* sizes, void* scratch) {
    correct(b, x, batch, m, out, sizes, scratch);
}
int32_t softlinalg_kernel_float(
    const float* points, int64_t batch, int64_t m, int64_t d, double scale, double limit, double lowest, double* out, double* memory) {
    for (int64_t i = 0; i < batch; ++i)
        if (!kernel_matrix(points + i * m * d, m, d, scale, limit, lowest, out + i * m * m, memory)) return 0;
    return 1;
}
int32_t softlinalg_kernel_double(
    const double* points, int64_t batch, int64_t m, int64_t d, double scale, double limit, double lowest, double* out, double* memory) {
    for (int64_t i = 0; i < batch; ++i)
        if (!kernel_matrix(points + i * m * d, m, d, scale, limit, lowest, out + i * m * m, memory)) return 0;
    return 1;
}
void softlinalg_inverse_vjp_float(const double* x, const double* grad, const double* w, const float* points, int64_t batch, int64_t m,
    int64_t d, double precision, double* out, double* memory) {
    for (int64_t i = 0; i < batch; ++i)
        inverse_vjp(x + i * m * m, grad + i * m * m, w + i * m * m, points + i * m * d, m, d, precision, out + i * m * d, memory);
}
void softlinalg_inverse_vjp_double(const double* x, const double* grad, const double* w, const double* points, int64_t batch, int64_t m,
    int64_t d, double precision, double* out, double* memory) {
    for (int64_t i = 0; i < batch; ++i)
        inverse_vjp(x + i * m * m, grad + i * m * m, w + i * m * m, points + i * m * d, m, d, precision, out + i * m * d, memory);
}
void softlinalg_factors_float(
    const float* points, int64_t batch, int64_t m, int64_t d, double scale, double unit, float* center, float* w, float* squares, float* rows, float* columns) {
    for (int64_t i = 0; i < batch; ++i)
        factors(points + i * m * d, m, d, float(scale), float(scale * scale), float(unit), center + i * d, w + i * m * d, squares + i * m,
            rows + i * m * (d + 2), columns + i * m * (d + 2));
}
void softlinalg_factors_double(
    const double* points, int64_t batch, int64_t m, int64_t d, double scale, double unit, double* center, double* w, double* squares, double* rows, double* columns) {
    for (int64_t i = 0; i < batch; ++i)
        factors(points + i * m * d, m, d, scale, scale * scale, unit, center + i * d, w + i * m * d, squares + i * m, rows + i * m * (d + 2),
            columns + i * m * (d + 2));
}
int32_t softlinalg_landmarks_float(const float* points, int64_t batch, int64_t m, int64_t d, double ridge, double scale, double unit, double limit,
    double narrow, double lowest, double gamma, double rounding, double tol, double* w, double* x, double* evidence, float* center, float* moved,
    float* rows, float* columns, double* memory, void* scratch) {
    return landmarks(points, batch, m, d, ridge, scale, unit, limit, narrow, lowest, gamma, rounding, tol, w, x, evidence, center, moved, rows,
        columns, memory, scratch);
}
int32_t softlinalg_landmarks_double(const double* points, int64_t batch, int64_t m, int64_t d, double ridge, double scale, double unit, double limit,
    double narrow, double lowest, double gamma, double rounding, double tol, double* w, double* x, double* evidence, double* center, double* moved,
    double* rows, double* columns, double* memory, void* scratch) {
    return landmarks(points, batch, m, d, ridge, scale, unit, limit, narrow, lowest, gamma, rounding, tol, w, x, evidence, center, moved, rows,
        columns, memory, scratch);
}
void softlinalg_nearest_float(
    const float* products, int64_t rows, int64_t m, const float* half, const float* of_half, const float* of_row, int64_t* label, float* best) {
    nearest(products, rows, m, half, of_half, of_row, label, best);
}
void softlinalg_nearest_double(
    const double* products, int64_t rows, int64_t m, const double* half, const double* of_half, const double* of_row, int64_t* label, double* best) {
    nearest(products, rows, m, half, of_half, of_row, label, best);
}
double softlinalg_relative_error(double trace_b, double trace_x, double worst, double norm, double gamma, int64_t m) {
    return relative_error(trace_b, trace_x, worst, norm, gamma, m);
}
int64_t softlinalg_scratch_bytes(int64_t m) {
    if (m > MOST_IN_LANES) return blocked::scratch_doubles(m) * int64_t(sizeof(double)) + 64;
    const int64_t p = (m + TILE - 1) / TILE * TILE;
    return (3 * p * p + 3 * p) * int64_t(sizeof(V)) + 64;
}
}

// Inverse of one symmetric positive definite matrix of a few hundred rows, with the evidence for its certificate, in double. LAPACK's
// routines for the two steps after Cholesky's factor reach a third of the machine's rate at these sizes.
//
// B = U^T U, then M = U^-T, then X = M^T M, the order of LAPACK's potrf and potri, so that theorem C4 of the certificates holds. All
// three are sums over k of (row k of one matrix)^T (row k of another), in tiles of ROWS x WIDTH that stay in registers. Matrices are
// stored in panels of WIDTH columns, in which such rows lie one after the other.

#pragma once

#include "_vectors.h"

#include <cmath>

namespace blocked {

typedef Vec<double> V;
constexpr int LANES = lanes<double>;
constexpr int VECTORS = 3, WIDTH = VECTORS * LANES;
constexpr int ROWS = WIDTH % 4 == 0 ? 4 : 3;
constexpr int64_t DEPTH = 192 / WIDTH * WIDTH;  // rows summed over at a time: those of a panel fill half of the first cache
constexpr int64_t CHUNK = 8;                    // panels whose rows stay in the second cache

typedef V Tile[ROWS][VECTORS];

struct Matrix {
    double* start;
    int64_t p;  // rows, whole panels
    double* row(int64_t k, int64_t column) const { return start + (column / WIDTH * p + k) * WIDTH + column % WIDTH; }
};

inline int64_t padded(int64_t m) { return (m + WIDTH - 1) / WIDTH * WIDTH; }
inline int64_t scratch_doubles(int64_t m) { return 2 * padded(m) * padded(m) + 8 * padded(m); }

// tile -= A^T B over rows [first, last), for ROWS columns of A from `i` on and the panel of column j of B
inline __attribute__((always_inline)) void subtract(const Matrix& a, int64_t i, const Matrix& b, int64_t j, int64_t first, int64_t last, Tile& tile) {
    const double *left = a.row(first, i), *right = b.row(first, j);
    for (int64_t k = first; k < last; ++k, left += WIDTH, right += WIDTH) {
        const V b0 = at(right), b1 = at(right + LANES), b2 = at(right + 2 * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const V x = V{} + left[r];
            tile[r][0] -= x * b0;
            tile[r][1] -= x * b1;
            tile[r][2] -= x * b2;
        }
    }
}

inline void read(const Matrix& a, int64_t i, int64_t j, Tile& tile) {
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) tile[r][v] = at(a.row(i + r, j) + v * LANES);
}

inline void write(const Matrix& a, int64_t i, int64_t j, const Tile& tile) {
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) at(a.row(i + r, j) + v * LANES) = tile[r][v];
}

// Rows i.. of the solution of U^T S = tile, given the rows before them.
inline void solve(const Matrix& u, const double* reciprocals, int64_t i, Tile& tile) {
    for (int r = 0; r < ROWS; ++r) {
        const V scale = V{} + reciprocals[i + r];
        for (int v = 0; v < VECTORS; ++v) tile[r][v] *= scale;
        for (int below = r + 1; below < ROWS; ++below) {
            const V x = V{} + *u.row(i + r, i + below);
            for (int v = 0; v < VECTORS; ++v) tile[below][v] -= x * tile[r][v];
        }
    }
}

// Rows i.. of U in the panel of their own diagonal, from what is left of B there.
inline void factor(int64_t i, double* reciprocals, Tile& tile) {
    const int64_t offset = i % WIDTH;
    for (int r = 0; r < ROWS; ++r) {
        double* row = reinterpret_cast<double*>(&tile[r][0]);
        const double pivot = std::sqrt(row[offset + r]);
        reciprocals[i + r] = 1.0 / pivot;
        const V scale = V{} + reciprocals[i + r];
        for (int v = 0; v < VECTORS; ++v) tile[r][v] *= scale;
        row[offset + r] = pivot;
        for (int64_t c = 0; c < offset + r; ++c) row[c] = 0;
        for (int below = r + 1; below < ROWS; ++below) {
            const V x = V{} + row[offset + below];
            for (int v = 0; v < VECTORS; ++v) tile[below][v] -= x * tile[r][v];
        }
    }
}

// Tiles (i, j) with i in [from, p) and i or j, whichever is meant, in the triangle: what rows [first, last) of A and B add to C.
// Upper: i <= the last column of the panel of j. Lower: j <= i.
template <bool UPPER> void update(const Matrix& a, const Matrix& b, const Matrix& c, int64_t from, int64_t first, int64_t last) {
    const int64_t p = c.p;
    for (int64_t chunk = from; chunk < p; chunk += CHUNK * WIDTH) {
        const int64_t end = chunk + CHUNK * WIDTH < p ? chunk + CHUNK * WIDTH : p;
        for (int64_t j = UPPER ? chunk : 0; j < (UPPER ? p : last); j += WIDTH) {
            const int64_t begin = UPPER || j < first ? first : j;  // rows of M before its diagonal are zero
            const int64_t stop = UPPER && j + WIDTH < end ? j + WIDTH : end;
            for (int64_t i = chunk; i < stop; i += ROWS) {
                Tile tile;
                read(c, i, j, tile);
                subtract(a, i, b, j, begin, last, tile);
                write(c, i, j, tile);
            }
        }
    }
}

// U in place of the upper triangle of B
inline void factorise(const Matrix& u, double* reciprocals) {
    for (int64_t first = 0; first < u.p; first += DEPTH) {
        const int64_t last = first + DEPTH < u.p ? first + DEPTH : u.p;
        for (int64_t j = first; j < u.p; j += WIDTH)
            for (int64_t i = first; i < last && i < j + WIDTH; i += ROWS) {
                Tile tile;
                read(u, i, j, tile);
                subtract(u, i, u, j, first, i, tile);
                if (i < j)
                    solve(u, reciprocals, i, tile);
                else
                    factor(i, reciprocals, tile);
                write(u, i, j, tile);
            }
        update<true>(u, u, u, last, first, last);
    }
}

// M = U^-T, lower triangular
inline void invert_factor(const Matrix& u, const double* reciprocals, const Matrix& m) {
    std::memset(m.start, 0, sizeof(double) * m.p * m.p);
    for (int64_t i = 0; i < m.p; ++i) *m.row(i, i) = 1.0;
    for (int64_t first = 0; first < u.p; first += DEPTH) {
        const int64_t last = first + DEPTH < u.p ? first + DEPTH : u.p;
        for (int64_t j = 0; j < last; j += WIDTH)
            for (int64_t i = first < j ? j : first; i < last; i += ROWS) {
                Tile tile;
                read(m, i, j, tile);
                subtract(u, i, m, j, first < j ? j : first, i, tile);
                solve(u, reciprocals, i, tile);
                write(m, i, j, tile);
            }
        update<false>(u, m, m, last, first, last);
    }
}

// -M^T M in the upper triangle of X, whole in the panels of the diagonal
inline void multiply_inverses(const Matrix& m, const Matrix& x) {
    for (int64_t first = 0; first < m.p; first += DEPTH) {
        const int64_t last = first + DEPTH < m.p ? first + DEPTH : m.p;
        for (int64_t chunk = 0; chunk < last; chunk += CHUNK * WIDTH) {
            const int64_t end = chunk + CHUNK * WIDTH < last ? chunk + CHUNK * WIDTH : last;
            for (int64_t j = chunk; j < last; j += WIDTH)
                for (int64_t i = chunk; i < end && i < j + WIDTH; i += ROWS) {
                    Tile tile = {};
                    if (j < first) read(x, i, j, tile);
                    subtract(m, i, m, j, first < j ? j : first, last, tile);
                    write(x, i, j, tile);
                }
        }
    }
}

inline double total(V x) {
    double sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
    return sum;
}

// X from -X, with its trace, an upper bound of its norm, and X v for v of ones and of alternating signs.
template <typename T>
void finish(const Matrix& x, int64_t m, T* out, double& trace, double& norm, double* sums, double* differences, double* lengths) {
    double squares = 0, longest = 0;
    trace = 0;
    for (int64_t i = 0; i < x.p; ++i) sums[i] = differences[i] = lengths[i] = 0;
    for (int64_t j = 0; j < x.p; j += WIDTH) {
        double* panel = x.row(0, j);
        for (int64_t c = m > j ? (m - j < WIDTH ? m - j : WIDTH) : 0; c < WIDTH; ++c)  // the identity beyond m
            for (int64_t k = 0; k < j + WIDTH; ++k) panel[k * WIDTH + c] = 0;
        V alternating[VECTORS], sum[VECTORS] = {}, difference[VECTORS] = {}, length[VECTORS] = {}, square = {};
        for (int c = 0; c < WIDTH; ++c) alternating[c / LANES][c % LANES] = (j + c) % 2 ? 1.0 : -1.0;
        for (int64_t k = 0; k < j + WIDTH && k < m; ++k) {
            double* row = panel + k * WIDTH;
            V row_sum = {}, row_difference = {}, row_length = {}, row_square = {};
            const V sign = V{} + (k % 2 ? 1.0 : -1.0);
            for (int v = 0; v < VECTORS; ++v) {
                const V entry = at(row + v * LANES) = -at(row + v * LANES), size = entry < 0.0 ? -entry : entry;
                sum[v] += entry;
                difference[v] += sign * entry;
                length[v] += size;
                row_sum += entry;
                row_difference += alternating[v] * entry;
                row_length += size;
                row_square += entry * entry;
            }
            if (k < j) {
                sums[k] += total(row_sum);
                differences[k] += total(row_difference);
                lengths[k] += total(row_length);
                square += row_square;
            }
            square += row_square;
        }
        for (int v = 0; v < VECTORS; ++v) {
            at(sums + j + v * LANES) += sum[v];
            at(differences + j + v * LANES) += difference[v];
            at(lengths + j + v * LANES) += length[v];
        }
        squares += total(square);
        const int64_t width = m - j < WIDTH ? m - j : WIDTH;
        for (int64_t k = 0; k < j + WIDTH && k < m; ++k)
            for (int64_t c = 0; c < width; ++c) out[k * m + j + c] = out[(j + c) * m + k] = T(panel[k * WIDTH + c]);
    }
    for (int64_t k = 0; k < m; ++k) {
        trace += *x.row(k, k);
        longest = longest < lengths[k] ? lengths[k] : longest;
    }
    const double frobenius = std::sqrt(squares);
    norm = (frobenius < longest ? frobenius : longest) * (1.0 + 8e-16 * double(m));
}

// |B X v - v|, given X v, for the two vectors
template <typename T>
double miss(const T* a, double ridge, int64_t m, const double* sums, const double* differences, double* one, double* two) {
    for (int64_t i = 0; i < m; ++i) {
        one[i] = ridge * sums[i] - 1.0;
        two[i] = ridge * differences[i] - (i % 2 ? 1.0 : -1.0);
    }
    for (int64_t k = 0; k < m; ++k) {
        const T* row = a + k * m;
        const double by_sum = sums[k], by_difference = differences[k];
        for (int64_t i = 0; i < m; ++i) {
            one[i] += double(row[i]) * by_sum;
            two[i] += double(row[i]) * by_difference;
        }
    }
    double by_ones = 0, by_signs = 0;
    for (int64_t i = 0; i < m; ++i) {
        by_ones += one[i] * one[i];
        by_signs += two[i] * two[i];
    }
    return std::sqrt(by_ones > by_signs || std::isnan(by_ones) ? by_ones : by_signs);
}

// `evidence` is that of the first matrix; its four numbers lie `batch` apart. `scratch` is aligned, `scratch_doubles` long.
template <typename T> void invert(const T* a, double ridge, int64_t m, int64_t batch, T* out, double* evidence, double* scratch) {
    const int64_t p = padded(m);
    const Matrix u = {scratch, p}, inverse = {scratch + p * p, p};
    double *reciprocals = scratch + 2 * p * p, *sums = reciprocals + p, *differences = sums + p, *lengths = differences + p;
    double trace = 0;
    for (int64_t j = 0; j < p; j += WIDTH)
        for (int64_t k = 0; k < j + WIDTH; ++k) {
            double* row = u.row(k, j);
            for (int64_t c = 0; c < WIDTH; ++c) {
                const bool inside = k < m && j + c < m;
                const double shift = k == j + c ? (inside ? ridge : 1.0) : 0.0;
                row[c] = (inside ? double(a[k * m + j + c]) : 0.0) + shift;
            }
        }
    for (int64_t i = 0; i < m; ++i) trace += *u.row(i, i);
    factorise(u, reciprocals);
    invert_factor(u, reciprocals, inverse);
    multiply_inverses(inverse, u);
    evidence[0] = trace;
    finish(u, m, out, evidence[batch], evidence[3 * batch], sums, differences, lengths);
    evidence[2 * batch] = miss(a, ridge, m, sums, differences, lengths, reciprocals);
}
}  // namespace blocked

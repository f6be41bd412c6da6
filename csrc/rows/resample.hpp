#pragma once
// Row functions of the stage "resample"; resample.inl defines them once for each instruction set.
//
// A block is 16 outputs of one row, anchored at a multiple of 16 of the output's x; a strip is 16 blocks.
// Positions in a block are counted from its lane 8. Positions in the frame are "turned" (p, q): reflected and
// transposed such that p grows with the output's x and q with its y, as the buffer holds the frame.

#include <cstddef>
#include <cstdint>

namespace fastack {

constexpr int block_columns = 16;
constexpr int strip_columns = 16 * block_columns;
constexpr int most_group_rows = 16; // rows that share the weights along q
constexpr int most_taps = 8;

/// The weights of a symmetric interpolating kernel of an even number of taps at phase f in [0, 1], with u = f
/// - 1/2, z = u^2, g = f - f^2: the taps k and taps - 1 - k are g (even[k](z) -+ u odd[k](z)), and the two in
/// the middle have 1 - f and f added. The even part of the middle pair is the others' with opposite sign, so
/// that the weights sum to 1. One tap: the nearest pixel, for positions that were moved by 1/2.
struct ResampleKernel {
    std::int32_t taps;
    float even[most_taps / 2][4];
    float odd[most_taps / 2][4];
};

/// Turned coordinates along one output row: cubics in X - origin.
struct ResampleLine {
    double p[4], q[4];
    double px[4], py[4], qx[4], qy[4]; // derivatives to the output's x and y
    bool linear;                       // the map is: one Jacobian for all
};

/// Where the blocks of a strip lie in one row.
struct ResamplePlan {
    std::int32_t ip[16], iq[16]; // whole part of the position of lane 8
    float p[4][16], q[4][16];    // its fraction, and the cubic about it along the row
    float drift[2][16];          // dq/dY - 1 and its slope along the row
    float jacobian[3][16];       // |J| as a quadratic along the row
};

/// What the straight blocks of a strip need to know of one row.
struct ResampleAlong {
    std::int32_t ip[16];           // whole part of the position of lane 8 along p
    float weight[3][most_taps][16]; // along p, as quadratics along the row (straight lines where not `curved`)
    float square[2][16];           // sum of their squares, as a straight line
    float jacobian[3][16];         // |J| as a quadratic along the row; one number where `linear`
};

/// One block of one or more rows.
struct ResampleTask {
    const ResampleKernel* kernel;
    const ResamplePlan* center;  // straight: row that the weights along q are expanded about
    const ResampleAlong* along;  // straight: of the rows to compute
    const ResamplePlan* plans;   // free: of the rows to compute
    const unsigned char* masked; // per row: a missing pixel may lie under the kernel
    int block;
    int rows;
    int first;           // first row - center row, which is even
    float reach;         // rows above and below the center where the weights along q are exact
    bool curved;         // the weights along p are quadratics; else straight lines, of a linear map
    bool even;           // straight: all rows begin at the same pixel and miss none
    bool pairs;          // an even row and the next share the weights along q of the place between them
    const float* buffer; // less a constant, NaN = missing
    std::ptrdiff_t stride, height, width;
    std::int32_t p0, q0; // turned position of buffer[0]
    float max_lost;
    float scale, offset;    // out = scale |J| (value + back) + offset, with |J|^2 where `square`
    float back;             // subtracted from the buffer - sky
    float per_area;         // variance factor = per_area |J|^2 sum k^2 / (sum k)^2
    float gain, base;       // linear: out = gain value + base
    float factor;           // linear: per_area |J|^2
    bool square;            // sum k^2 s / (sum k)^2 in place of sum k s / sum k
    float* out;             // (rows, 16), rows `out_stride` apart
    unsigned char* factors; // (rows, 16), rows `factor_stride` apart
    std::ptrdiff_t out_stride, factor_stride;
    const float* next_out;             // where the next block's go
    const unsigned char* next_factors;
    unsigned char* interpolated; // (rows, 16), written in masked rows only
};

struct ResampleRows {
    /// Positions and Jacobians of the strip whose first lane 8 stands at x - origin = `first`.
    void (*plan)(const ResampleLine&, double first, ResamplePlan&);
    /// By taps / 2. The same for straight blocks, and their weights along p.
    void (*along[5])(const ResampleLine&, double first, const ResampleKernel&, bool curved, ResampleAlong&);
    /// By taps / 2. Blocks in which p advances with x and q with y by nearly 1, and q changes by less than 1
    /// along the block.
    void (*straight[5])(const ResampleTask&);
    /// By taps / 2. Any other map.
    void (*free[5])(const ResampleTask&);
    /// dst[j * stride + i] = src[i * dp + j * dq] - level; either |dp| or |dq| is 1. suspect[j] = 0 where all
    /// pixels of a row are known to be finite.
    void (*turn)(const float* src, std::ptrdiff_t dp, std::ptrdiff_t dq, std::ptrdiff_t nx, std::ptrdiff_t ny,
                 float level, float* dst, std::ptrdiff_t stride, unsigned char* suspect);
    /// Bit i tells whether a pixel of cell i is not finite; cells of `cell` pixels, which is a multiple of 8, as n is.
    std::uint64_t (*scan)(const float* row, std::ptrdiff_t n, std::ptrdiff_t cell);
};

} // namespace fastack

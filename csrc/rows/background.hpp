#pragma once
// Row functions of the stage "background"; background.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

/// Buffers of the cell functions are padded with infinity to a multiple of this; infinity counts nowhere.
constexpr std::ptrdiff_t cell_lanes = 32;

struct CellMoments {
    float n;    ///< samples within the limit
    float sum;  ///< of x - centre
    float sum2; ///< of (x - centre)^2
};

struct CellCore {
    float n_core; ///< samples within +-width of the centre
    float sum;    ///< of x - centre within the limit, each clamped to +-width
};

struct BackgroundRows {
    /// Medians of nine: out[i] of x[i], x[i + n], ..., x[i + 8n].
    void (*median_of_nine)(const float* x, std::ptrdiff_t n, float* out);
    /// |x - centre|
    void (*distance)(const float* x, std::ptrdiff_t n, float centre, float* out);
    CellMoments (*moments)(const float* x, std::ptrdiff_t n, float centre, float limit);
    CellCore (*core)(const float* x, std::ptrdiff_t n, float centre, float limit, float width);
    /// Copies x[edge[i]] to x[edge[i + 1]] to out[i], for n cells, and adds the missing samples (not finite) to
    /// missing[i]. Asks the cache for what lies `ahead` of each.
    void (*deal)(const float* x, const std::ptrdiff_t* edge, std::ptrdiff_t n, std::ptrdiff_t ahead, float* const* out,
                 int* missing);
    /// out = sum of weight[k] * rows[k][x] over four mesh rows
    void (*blend)(const float* const* rows, const float* weight, std::ptrdiff_t n, float* out);
    void (*subtract)(const float* x, const float* level, std::ptrdiff_t n, float* out);
};

} // namespace fastack

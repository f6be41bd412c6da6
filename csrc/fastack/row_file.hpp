#pragma once
// Rows of bytes in a file.

#include "fastack/view.hpp"

#include <stdexcept>

namespace fastack {

/// Rows that lie at equal distances in a file, which somebody else keeps open.
struct RowFile {
    int descriptor = -1;
    std::int64_t offset = 0;       ///< of the first byte of the first row
    std::ptrdiff_t stride = 0;     ///< bytes from one row to the next
    std::ptrdiff_t ny = 0, nx = 0; ///< rows, and bytes of each that are wanted

    /// Rows [y, y + n), in memory of this thread that the next call overwrites. Throws FileEnd, or std::system_error
    /// with what the system says.
    Image<const unsigned char> read(std::ptrdiff_t y, std::ptrdiff_t n) const;

    /// Rows to be read at once: few enough to stay in the second-level cache.
    std::ptrdiff_t piece() const;
};

/// The file holds `have` bytes, and not the `need` that the rows lie in.
struct FileEnd : std::runtime_error {
    std::int64_t have, need;

    FileEnd(std::int64_t have, std::int64_t need);
};

} // namespace fastack

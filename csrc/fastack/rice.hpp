#pragma once
// Rice-coded tiles of compressed FITS images (fpack), back to the bytes that a plain file would hold.

#include "fastack/view.hpp"

namespace fastack {

/// How the tiles of an image lie in its file and how they were packed.
struct RiceTiles {
    std::ptrdiff_t ny = 0, nx = 0;         // pixels of the image
    std::ptrdiff_t tile_ny = 1, tile_nx = 0; // of a tile; those at the far edges may be smaller
    int bytes = 2;                         // of a pixel: 1, 2 or 4
    int block = 32;                        // pixels that share one number of split bits
};

/// Decodes rows [y0, y0 + out.ny) of an image, out.ny x (nx * bytes) big-endian bytes.
///
/// `where`: first byte within `packed` and length of each tile in the rows of tiles that the window touches, row by
/// row. Throws std::invalid_argument, naming the tile, where the bytes of one do not make up its pixels.
void decode_rice(const RiceTiles& tiles, Image<const std::int64_t> where, Span<const std::uint8_t> packed,
                 std::ptrdiff_t y0, Image<std::uint8_t> out);

} // namespace fastack

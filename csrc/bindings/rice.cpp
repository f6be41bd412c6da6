#include "fastack/rice.hpp"

#include "bindings/arrays.hpp"

namespace {

using namespace fastack;

void decode_rows(Array<std::uint8_t>& out, const Array<std::uint8_t>& packed, const Array<std::int64_t>& where,
                 std::pair<std::ptrdiff_t, std::ptrdiff_t> shape, std::pair<std::ptrdiff_t, std::ptrdiff_t> tile,
                 int bytes, int block, std::ptrdiff_t y0) {
    const RiceTiles tiles{shape.first, shape.second, tile.first, tile.second, bytes, block};
    require(bytes == 1 || bytes == 2 || bytes == 4, "bytes must be 1, 2 or 4");
    require(block > 0 && tile.first > 0 && tile.second > 0, "block and tile must be positive");
    require(out.ndim() == 2 && out.shape(1) == shape.second * bytes, "out must have the image's width in bytes");
    const Image<std::uint8_t> rows = out_image(out);
    require(y0 >= 0 && rows.ny > 0 && y0 + rows.ny <= shape.first, "the rows lie outside of the image");
    const std::ptrdiff_t bands = (y0 + rows.ny - 1) / tile.first - y0 / tile.first + 1;
    require(where.ndim() == 2 && where.shape(1) == 2 &&
                where.shape(0) == bands * ((shape.second + tile.second - 1) / tile.second),
            "where must have a row for each tile that the rows touch");
    const Span<const std::uint8_t> bytes_of_tiles = as_span(packed, "packed");
    py::gil_scoped_release release;
    decode_rice(tiles, as_image(where, "where"), bytes_of_tiles, y0, rows);
}

} // namespace

void bind_rice(py::module_& m) {
    m.def("decode_rice", &decode_rows, "out"_a.noconvert(), "packed"_a.noconvert(), "where"_a.noconvert(), py::kw_only(),
          "shape"_a, "tile"_a, "bytes"_a, "block"_a, "y0"_a,
          "Rows from y0 on of a Rice-coded image as big-endian bytes; `where` holds start and length of each tile.");
}

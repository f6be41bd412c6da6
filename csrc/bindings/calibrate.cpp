#include "fastack/calibrate.hpp"

#include "bindings/arrays.hpp"

#include <cstring>
#include <system_error>

namespace {

using namespace fastack;

// Rows of bytes may be cut from wider rows (a section of a frame), so only the inner axis must be contiguous.
Image<const unsigned char> as_bytes(const py::array_t<unsigned char>& raw) {
    require(raw.ndim() == 2, "raw must have two dimensions: rows and bytes");
    require(raw.shape(1) < 2 || raw.strides(1) == 1, "the bytes of a row of raw must be contiguous");
    return {raw.data(), raw.shape(0), raw.shape(1), raw.strides(0)};
}

const RowFile& as_bytes(const RowFile& raw) {
    return raw;
}

// The window of a master that belongs to `out`, whose first pixel lies at (y0, x0) of the master.
Image<const float> window(const std::optional<FloatArray>& master, const char* name, std::ptrdiff_t y0,
                          std::ptrdiff_t x0, const Image<float>& out) {
    if (!master)
        return {};
    const Image<const float> whole = as_image(*master, name);
    require(y0 >= 0 && x0 >= 0 && y0 + out.ny <= whole.ny && x0 + out.nx <= whole.nx,
            std::string("the window lies outside of ") + name);
    return {whole.data + y0 * whole.stride + x0, out.ny, out.nx, whole.stride};
}

template <class Raw>
Array<std::int32_t> calibrate_rows(FloatArray& out, const Raw& raw, int bitpix, double bscale, double bzero,
                                   std::optional<std::int64_t> blank, double saturation,
                                   const std::optional<DoubleArray>& level, const std::optional<FloatArray>& bias,
                                   const std::optional<FloatArray>& dark, float dark_scale,
                                   const std::optional<FloatArray>& inv_flat, std::ptrdiff_t y0, std::ptrdiff_t x0) {
    require(out.ndim() == 2, "out must have two dimensions");
    const Storage storage{bitpix, bscale, bzero, blank};
    const auto bytes = as_bytes(raw);
    const Image<float> pixels = out_image(out);
    require(bytes.ny == pixels.ny && bytes.nx == pixels.nx * storage.bytes(),
            "raw is " + std::to_string(bytes.ny) + " rows of " + std::to_string(bytes.nx) + " bytes, out needs " +
                std::to_string(pixels.ny) + " of " + std::to_string(pixels.nx * storage.bytes()));
    Masters masters;
    masters.level = as_span(level, "level");
    if (masters.level) {
        require(y0 >= 0 && y0 + pixels.ny <= masters.level.size, "the window lies outside of level");
        masters.level = {masters.level.data + y0, pixels.ny};
    }
    masters.bias = window(bias, "bias", y0, x0, pixels);
    masters.dark = window(dark, "dark", y0, x0, pixels);
    masters.dark_scale = dark_scale;
    masters.inv_flat = window(inv_flat, "inv_flat", y0, x0, pixels);

    std::vector<Position> saturated;
    {
        py::gil_scoped_release release;
        saturated = calibrate(bytes, storage, masters, saturation, pixels);
    }
    Array<std::int32_t> positions({static_cast<py::ssize_t>(saturated.size()), py::ssize_t{2}});
    if (!saturated.empty())
        std::memcpy(positions.mutable_data(), saturated.data(), saturated.size() * sizeof(Position));
    return positions;
}

template <class Raw> void define_calibrate(py::module_& m) {
    m.def("calibrate", &calibrate_rows<Raw>, "out"_a.noconvert(), "raw"_a.noconvert(), py::kw_only(), "bitpix"_a,
          "bscale"_a = 1.0, "bzero"_a = 0.0, "blank"_a = py::none(),
          "saturation"_a = std::numeric_limits<double>::infinity(), "level"_a.noconvert() = py::none(),
          "bias"_a.noconvert() = py::none(), "dark"_a.noconvert() = py::none(), "dark_scale"_a = 1.0f,
          "inv_flat"_a.noconvert() = py::none(), "y0"_a = 0, "x0"_a = 0,
          "Stored rows, or those of a file, to calibrated pixels in `out`; returns the (x, y) of saturated pixels.");
}

// What reading a file may end with, in Python's own words.
void translate(std::exception_ptr thrown) {
    try {
        if (thrown)
            std::rethrow_exception(thrown);
    } catch (const FileEnd& end) {
        PyErr_SetObject(PyExc_EOFError, py::make_tuple(end.have, end.need).ptr());
    } catch (const std::system_error& error) {
        PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code().value(), error.code().message()).ptr());
    }
}

} // namespace

void bind_calibrate(py::module_& m) {
    py::register_local_exception_translator(translate);
    py::class_<RowFile>(m, "RowFile", "Rows at equal distances in a file that somebody else keeps open.")
        .def(py::init<int, std::int64_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t>(), "descriptor"_a, "offset"_a,
             "stride"_a, "ny"_a, "nx"_a)
        .def("__len__", [](const RowFile& file) { return file.ny; });
    define_calibrate<RowFile>(m);
    define_calibrate<py::array_t<unsigned char>>(m);
    m.def(
        "blank_pixels",
        [](FloatArray& image, const Array<std::int32_t>& list, std::ptrdiff_t y0, std::ptrdiff_t x0) {
            require(image.ndim() == 2, "image must have two dimensions");
            require(list.ndim() == 2 && list.shape(1) == 2, "list must have shape (k, 2)");
            blank_pixels(out_image(image), {list.data(), list.size()}, y0, x0);
        },
        "image"_a.noconvert(), "list"_a.noconvert(), "y0"_a, "x0"_a);
}

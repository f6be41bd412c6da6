#include "fastack/calibrate.hpp"

#include "rows/rows.hpp"

#include <algorithm>
#include <limits>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace fastack {
namespace {

template <class Word> Word load(const unsigned char* raw) {
    Word word = 0;
    for (std::size_t i = 0; i < sizeof word; ++i)
        word = static_cast<Word>(word << 8 | raw[i]);
    return word;
}

template <class T, class Word> double number(Word word) {
    T value;
    std::memcpy(&value, &word, sizeof value);
    return static_cast<double>(value);
}

double physical(const unsigned char* raw, const Storage& s) {
    switch (s.bitpix) {
    case 8: return raw[0] * s.bscale + s.bzero;
    case 16: return number<std::int16_t>(load<std::uint16_t>(raw)) * s.bscale + s.bzero;
    case 32: return number<std::int32_t>(load<std::uint32_t>(raw)) * s.bscale + s.bzero;
    case 64: return number<std::int64_t>(load<std::uint64_t>(raw)) * s.bscale + s.bzero;
    case -32: return number<float>(load<std::uint32_t>(raw)) * s.bscale + s.bzero;
    default: return number<double>(load<std::uint64_t>(raw)) * s.bscale + s.bzero;
    }
}

CalibrateFunction choose(const Storage& s) {
    const CalibrateRows& r = rows().calibrate;
    const bool plain = s.bscale == 1 && s.bzero == std::nearbyint(s.bzero) && std::fabs(s.bzero) <= 8388608.0;
    switch (s.bitpix) {
    case 8: return plain && !s.blank ? r.u8 : r.u8_exact;
    case 16: return plain && !s.blank ? r.s16 : r.s16_exact;
    case 32: return r.s32_exact;
    case 64: return r.s64_exact;
    case -32: return plain && s.bzero == 0 ? r.f32 : r.f32_exact;
    default: return r.f64_exact;
    }
}

template <class T> Image<T> rows_of(const Image<T>& image, std::ptrdiff_t y, std::ptrdiff_t n) {
    return image ? Image<T>{image.row(y), n, image.nx, image.stride} : Image<T>{};
}

} // namespace

std::ptrdiff_t Storage::bytes() const {
    switch (bitpix) {
    case 8: return 1;
    case 16: return 2;
    case 32:
    case -32: return 4;
    case 64:
    case -64: return 8;
    default: throw std::invalid_argument("BITPIX is " + std::to_string(bitpix) + ", not 8, 16, 32, 64, -32, -64");
    }
}

std::vector<Position> calibrate(Image<const unsigned char> raw, const Storage& storage, const Masters& masters,
                                double saturation, Image<float> out) {
    const std::ptrdiff_t size = storage.bytes();
    const CalibrateFunction function = choose(storage);
    const std::int64_t blank = storage.blank.value_or(0);
    std::vector<Position> saturated;
    for (std::ptrdiff_t y = 0; y < out.ny; ++y) {
        CalibrateRow row{};
        row.raw = raw.row(y);
        row.n = out.nx;
        row.bscale = storage.bscale;
        row.bzero = storage.bzero;
        row.level = masters.level ? masters.level[y] : 0.0;
        row.blank = storage.blank ? &blank : nullptr;
        row.bias = masters.bias ? masters.bias.row(y) : nullptr;
        row.dark = masters.dark ? masters.dark.row(y) : nullptr;
        row.dark_scale = masters.dark_scale;
        row.inv_flat = masters.inv_flat ? masters.inv_flat.row(y) : nullptr;
        row.saturation = saturation;
        row.out = out.row(y);
        if (function(row) == 0)
            continue;
        for (std::ptrdiff_t x = 0; x < out.nx; ++x) {
            const unsigned char* pixel = row.raw + x * size;
            const bool missing = storage.blank && storage.bitpix > 0 &&
                                 physical(pixel, {storage.bitpix, 1, 0, {}}) == static_cast<double>(blank);
            if (!missing && physical(pixel, storage) >= saturation)
                saturated.push_back({static_cast<std::int32_t>(x), static_cast<std::int32_t>(y)});
        }
    }
    return saturated;
}

Masters Masters::rows(std::ptrdiff_t y, std::ptrdiff_t n) const {
    Masters part;
    if (level)
        part.level = {level.data + y, n};
    part.bias = rows_of(bias, y, n);
    part.dark = rows_of(dark, y, n);
    part.dark_scale = dark_scale;
    part.inv_flat = rows_of(inv_flat, y, n);
    return part;
}

std::vector<Position> calibrate(const RowFile& raw, const Storage& storage, const Masters& masters, double saturation,
                                Image<float> out) {
    std::vector<Position> saturated;
    const std::ptrdiff_t step = raw.piece();
    for (std::ptrdiff_t y = 0; y < out.ny; y += step) {
        const std::ptrdiff_t n = std::min(step, out.ny - y);
        for (Position p : calibrate(raw.read(y, n), storage, masters.rows(y, n), saturation, rows_of(out, y, n)))
            saturated.push_back({p.x, p.y + static_cast<std::int32_t>(y)});
    }
    return saturated;
}

void blank_pixels(Image<float> image, Span<const std::int32_t> list, std::ptrdiff_t y0, std::ptrdiff_t x0) {
    std::ptrdiff_t first = 0, last = list.size / 2; // the first with y >= y0
    while (first < last) {
        const std::ptrdiff_t middle = (first + last) / 2;
        if (list[2 * middle + 1] < y0)
            first = middle + 1;
        else
            last = middle;
    }
    for (; first < list.size / 2 && list[2 * first + 1] < y0 + image.ny; ++first)
        if (const std::ptrdiff_t x = list[2 * first] - x0; x >= 0 && x < image.nx)
            image(list[2 * first + 1] - y0, x) = std::numeric_limits<float>::quiet_NaN();
}

} // namespace fastack

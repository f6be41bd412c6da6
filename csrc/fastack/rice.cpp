#include "fastack/rice.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace fastack {

namespace {

/// Bits from the most significant one on. Past the end there are zeros, and `good` tells.
class Bits {
  public:
    explicit Bits(Span<const std::uint8_t> bytes) : next_(bytes.begin()), end_(bytes.end()) {}

    /// At least 56 bits become ready.
    void fill() {
        if (end_ - next_ >= 8) {
            std::uint64_t word = 0;
            for (int k = 0; k < 8; ++k) // one load, bytes swapped
                word = word << 8 | next_[k];
            ready_ |= word >> count_;
            next_ += (63 - count_) >> 3;
            count_ |= 56;
            return;
        }
        if (count_ < 0)
            good_ = false;
        for (; good_ && count_ <= 56 && next_ < end_; count_ += 8)
            ready_ |= std::uint64_t(*next_++) << (56 - count_);
    }
    /// 1 to 32 bits, of those that are ready.
    std::uint32_t take(int n) {
        const auto value = std::uint32_t(ready_ >> (64 - n));
        skip(n);
        return value;
    }
    /// Number of zeros before the next one, which is taken, too.
    std::uint32_t take_zeros() {
        std::uint32_t zeros = 0;
        int n = std::countl_zero(ready_);
        while (n >= count_) { // what stands in `ready_` beyond its count does not count
            if (next_ == end_) {
                good_ = false;
                return 0;
            }
            zeros += std::uint32_t(count_);
            count_ = 0;
            ready_ = 0;
            fill();
            n = std::countl_zero(ready_);
        }
        ready_ = ready_ << n << 1;
        count_ -= n + 1;
        return zeros + std::uint32_t(n);
    }
    bool has(int n) const { return count_ >= n; }
    bool good() const { return good_ && count_ >= 0; }

  private:
    void skip(int n) {
        ready_ <<= n;
        count_ -= n;
    }

    const std::uint8_t* next_;
    const std::uint8_t* end_;
    std::uint64_t ready_ = 0;
    int count_ = 0; // bits of `ready_` that count; below 0: more were taken than there are
    bool good_ = true;
};

/// Constants of the code for one size of pixel (FITS standard 4.0, section 10.4.1).
template <class Pixel> struct Code;
template <> struct Code<std::uint8_t> {
    static constexpr int split_bits = 3, most_split = 6;
};
template <> struct Code<std::uint16_t> {
    static constexpr int split_bits = 4, most_split = 14;
};
template <> struct Code<std::uint32_t> {
    static constexpr int split_bits = 5, most_split = 25;
};

/// Differences are folded so that small ones of either sign are small numbers: 0, -1, 1, -2 ...
template <class Pixel> Pixel unfolded(std::uint32_t folded) {
    return Pixel((folded >> 1) ^ (0u - (folded & 1u)));
}

template <class Pixel> void store_big_endian(Pixel value, std::uint8_t* to) {
    for (int k = int(sizeof(Pixel)) - 1; k >= 0; --k) {
        to[k] = std::uint8_t(value);
        value = Pixel(std::uint64_t(value) >> 8);
    }
}

/// Pixels of one tile, each as big-endian bytes; whether the tile held as many.
template <class Pixel>
bool decode_tile(Span<const std::uint8_t> packed, int block, std::ptrdiff_t n, std::uint8_t* out) {
    using C = Code<Pixel>;
    constexpr int width = 8 * int(sizeof(Pixel));
    Bits bits(packed);
    bits.fill();
    auto last = Pixel(bits.take(width));
    for (std::ptrdiff_t i = 0; i < n && bits.good(); i += block) {
        const std::ptrdiff_t stop = std::min<std::ptrdiff_t>(i + block, n);
        bits.fill();
        const int split = int(bits.take(C::split_bits)) - 1;
        for (std::ptrdiff_t k = i; k < stop; ++k) {
            if (split == C::most_split) { // noise that no code shortens stands as it is
                bits.fill();
                last = Pixel(last + unfolded<Pixel>(bits.take(width)));
            } else if (split >= 0) {
                bits.fill();
                std::uint32_t folded = bits.take_zeros();
                if (split > 0) {
                    if (!bits.has(split))
                        bits.fill();
                    folded = (folded << split) | bits.take(split);
                }
                last = Pixel(last + unfolded<Pixel>(folded));
            }
            store_big_endian(last, out + k * std::ptrdiff_t(sizeof(Pixel)));
        }
    }
    return bits.good();
}

bool decode_tile(const RiceTiles& tiles, Span<const std::uint8_t> packed, std::ptrdiff_t n, std::uint8_t* out) {
    switch (tiles.bytes) {
    case 1: return decode_tile<std::uint8_t>(packed, tiles.block, n, out);
    case 2: return decode_tile<std::uint16_t>(packed, tiles.block, n, out);
    default: return decode_tile<std::uint32_t>(packed, tiles.block, n, out);
    }
}

} // namespace

void decode_rice(const RiceTiles& tiles, Image<const std::int64_t> where, Span<const std::uint8_t> packed,
                 std::ptrdiff_t y0, Image<std::uint8_t> out) {
    const std::ptrdiff_t across = (tiles.nx + tiles.tile_nx - 1) / tiles.tile_nx, first = y0 / tiles.tile_ny;
    std::vector<std::uint8_t> tile(size_t(tiles.tile_ny * tiles.tile_nx * tiles.bytes));
    for (std::ptrdiff_t t = 0; t < where.ny; ++t) {
        const std::ptrdiff_t top = (first + t / across) * tiles.tile_ny, left = t % across * tiles.tile_nx;
        const std::ptrdiff_t high = std::min(tiles.tile_ny, tiles.ny - top), wide = std::min(tiles.tile_nx, tiles.nx - left);
        const std::int64_t start = where(t, 0), count = where(t, 1);
        if (start < 0 || count < 1 || start > packed.size - count ||
            !decode_tile(tiles, {packed.data + start, count}, high * wide, tile.data()))
            throw std::invalid_argument("tile " + std::to_string(first * across + t + 1) + " is damaged");
        const std::ptrdiff_t row_bytes = wide * tiles.bytes;
        for (std::ptrdiff_t y = std::max(top, y0); y < std::min(top + high, y0 + out.ny); ++y)
            std::copy_n(tile.data() + (y - top) * row_bytes, row_bytes, out.row(y - y0) + left * tiles.bytes);
    }
}

} // namespace fastack

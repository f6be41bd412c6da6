#include "fastack/row_file.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

namespace fastack {
namespace {

constexpr std::ptrdiff_t PIECE = 1 << 19; // bytes

void fill(int descriptor, std::int64_t offset, unsigned char* to, std::ptrdiff_t count) {
    const std::int64_t end = offset + count;
    while (offset < end) {
        const ssize_t got = pread(descriptor, to, static_cast<std::size_t>(end - offset), offset);
        if (got == 0)
            throw FileEnd(offset, end);
        if (got < 0 && errno != EINTR)
            throw std::system_error(errno, std::generic_category());
        offset += std::max<ssize_t>(got, 0);
        to += std::max<ssize_t>(got, 0);
    }
}

} // namespace

FileEnd::FileEnd(std::int64_t have, std::int64_t need)
    : std::runtime_error("the file ends before its rows"), have(have), need(need) {}

std::ptrdiff_t RowFile::piece() const {
    return std::max<std::ptrdiff_t>(1, PIECE / std::max<std::ptrdiff_t>(1, stride));
}

Image<const unsigned char> RowFile::read(std::ptrdiff_t y, std::ptrdiff_t n) const {
    // Whole rows in one read, unless that fetches far more than is wanted.
    const bool narrow = nx >= 4096 && nx * 4 < stride;
    const std::ptrdiff_t wide = narrow ? nx : stride;
    thread_local std::unique_ptr<unsigned char[]> room;
    thread_local std::ptrdiff_t size = 0;
    if (size < n * wide) {
        room.reset(new unsigned char[static_cast<std::size_t>(n * wide)]);
        size = n * wide;
    }
    const std::int64_t first = offset + y * stride;
    if (narrow)
        for (std::ptrdiff_t i = 0; i < n; ++i)
            fill(descriptor, first + i * stride, room.get() + i * wide, nx);
    else if (n > 0)
        fill(descriptor, first, room.get(), (n - 1) * stride + nx);
    return {room.get(), n, nx, wide};
}

} // namespace fastack

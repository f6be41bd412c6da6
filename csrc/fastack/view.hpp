#pragma once
// A view is a pointer, a shape and a stride; it owns nothing. `Image<const float>` is read, `Image<float>` is
// written. Strides count elements.

#include <cstddef>
#include <cstdint>

namespace fastack {

template <class T> struct Span {
    T* data = nullptr;
    std::ptrdiff_t size = 0;

    T& operator[](std::ptrdiff_t i) const { return data[i]; }
    T* begin() const { return data; }
    T* end() const { return data + size; }
    explicit operator bool() const { return data != nullptr; }
};

template <class T> struct Image {
    T* data = nullptr;
    std::ptrdiff_t ny = 0;
    std::ptrdiff_t nx = 0;
    std::ptrdiff_t stride = 0;

    T* row(std::ptrdiff_t y) const { return data + y * stride; }
    T& operator()(std::ptrdiff_t y, std::ptrdiff_t x) const { return data[y * stride + x]; }
    explicit operator bool() const { return data != nullptr; }
};

/// Asks the cache for the square of pixels within r of (x, y), which will be needed soon.
inline void prefetch(const Image<const float>& image, std::ptrdiff_t x, std::ptrdiff_t y, std::ptrdiff_t r) {
    if (x < r || y < r || x + r >= image.nx || y + r >= image.ny)
        return;
    for (std::ptrdiff_t v = y - r; v <= y + r; ++v) {
        __builtin_prefetch(image.row(v) + x - r);
        __builtin_prefetch(image.row(v) + x + r);
    }
}

/// N images of one shape, one after the other.
template <class T> struct Stack {
    T* data = nullptr;
    std::ptrdiff_t n = 0;
    std::ptrdiff_t ny = 0;
    std::ptrdiff_t nx = 0;

    Image<T> image(std::ptrdiff_t i) const { return {data + i * ny * nx, ny, nx, nx}; }
    explicit operator bool() const { return data != nullptr; }
};

} // namespace fastack

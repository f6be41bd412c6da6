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

/// Columns of a panel. Where the frames of a panel's rows lie one after the other, memory is read as it comes.
constexpr int PANEL = 64;

/// An image of which each row lies in panels of 64 columns. A plain image has its panels beside each other.
template <class T> struct PanelImage {
    T* data = nullptr;
    std::ptrdiff_t ny = 0, nx = 0;
    std::ptrdiff_t row_stride = 0, panel_stride = PANEL;

    T* at(std::ptrdiff_t y, std::ptrdiff_t x) const {
        return data + y * row_stride + (x / PANEL) * panel_stride + x % PANEL;
    }
    /// Columns from x on that lie side by side, `n` at most.
    std::ptrdiff_t together(std::ptrdiff_t x, std::ptrdiff_t n) const {
        const std::ptrdiff_t left = PANEL - x % PANEL;
        return panel_stride == PANEL || n <= left ? n : left;
    }
    explicit operator bool() const { return data != nullptr; }
};

/// N images of one shape, each row in panels of 64 columns. Plain images have panels beside each other; else the rows of
/// a panel, [frame][column], are whole ones also at the right border.
template <class T> struct Panels {
    T* data = nullptr;
    std::ptrdiff_t n = 0, ny = 0, nx = 0;
    std::ptrdiff_t frame_stride = 0, row_stride = 0, panel_stride = PANEL;

    T* at(std::ptrdiff_t i, std::ptrdiff_t y, std::ptrdiff_t x) const {
        return data + i * frame_stride + y * row_stride + (x / PANEL) * panel_stride + x % PANEL;
    }
    /// Whether a row of a panel holds all frames.
    bool interleaved() const { return frame_stride == PANEL; }
    explicit operator bool() const { return data != nullptr; }
};

} // namespace fastack

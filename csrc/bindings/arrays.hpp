#pragma once
// NumPy arrays to views, with the error texts. Bindings convert, check, release the GIL, call; nothing else.

#include "fastack/view.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

namespace py = pybind11;
using namespace pybind11::literals;

namespace fastack {

// With `.noconvert()` these refuse another dtype, byte order or layout instead of copying behind the caller's back.
template <class T> using Array = py::array_t<T, py::array::c_style>;
using FloatArray = Array<float>;
using DoubleArray = Array<double>;

inline void require(bool condition, const std::string& message) {
    if (!condition)
        throw std::invalid_argument(message);
}

template <class T> Span<const T> as_span(const Array<T>& a, const char* name) {
    require(a.ndim() == 1, std::string(name) + " must have one dimension");
    return {a.data(), a.shape(0)};
}

template <class T> Image<const T> as_image(const Array<T>& a, const char* name) {
    require(a.ndim() == 2, std::string(name) + " must have two dimensions");
    return {a.data(), a.shape(0), a.shape(1), a.shape(1)};
}

template <class T> Stack<const T> as_stack(const Array<T>& a, const char* name) {
    require(a.ndim() == 3, std::string(name) + " must have three dimensions");
    return {a.data(), a.shape(0), a.shape(1), a.shape(2)};
}

template <class T> Image<const T> as_image(const std::optional<Array<T>>& a, const char* name) {
    return a ? as_image(*a, name) : Image<const T>{};
}

template <class T> Span<const T> as_span(const std::optional<Array<T>>& a, const char* name) {
    return a ? as_span(*a, name) : Span<const T>{};
}

template <class T> Span<T> out_span(Array<T>& a) { return {a.mutable_data(), a.shape(0)}; }

template <class T> Image<T> out_image(Array<T>& a) {
    return {a.mutable_data(), a.shape(0), a.shape(1), a.shape(1)};
}

template <class T> Array<T> new_image(std::ptrdiff_t ny, std::ptrdiff_t nx) {
    return Array<T>({ny, nx});
}

template <class T> Array<T> new_span(std::ptrdiff_t n) { return Array<T>(n); }

} // namespace fastack

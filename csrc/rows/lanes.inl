// Included inside the namespace of one instruction set (see level.inl): vectors as wide as its registers, by the
// vector extension of GCC and Clang. For sums of floats, which a compiler may not reorder by itself, and for loops that
// it leaves scalar.

#if defined(__AVX512F__)
constexpr int native_lanes = 16;
#elif defined(__AVX__)
constexpr int native_lanes = 8;
#else
constexpr int native_lanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * native_lanes)));
typedef int32_t Ints __attribute__((vector_size(4 * native_lanes)));

inline Floats load_floats(const float* p) {
    Floats v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

inline Floats load_aligned(const float* p) {
    Floats v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4 * native_lanes), sizeof v);
    return v;
}

inline void store_floats(float* p, Floats v) {
    __builtin_memcpy(p, &v, sizeof v);
}

inline void store_aligned(float* p, Floats v) {
    __builtin_memcpy(__builtin_assume_aligned(p, 4 * native_lanes), &v, sizeof v);
}

inline Floats all_floats(float value) {
    return Floats{} + value;
}

/// Whatever is negative becomes 0; NaN, too.
inline Floats above_zero(Floats v) {
    return v > 0.0f ? v : Floats{};
}

inline Floats absolute(Floats v) {
    return (Floats)((Ints)v & 0x7fffffff);
}

/// Bit i: whether lane i of a comparison is true.
inline uint32_t set_lanes(Ints v) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)v));
#else
    uint64_t part[sizeof v / 8], any = 0;
    __builtin_memcpy(part, &v, sizeof v);
    for (const uint64_t p : part)
        any |= p;
    uint32_t bits = 0;
    for (int i = 0; any && i < native_lanes; ++i)
        bits |= (v[i] ? 1u : 0u) << i;
    return bits;
#endif
}

/// Halves are added to each other until one lane is left.
inline float add_lanes(Floats v) {
    typedef float Four __attribute__((vector_size(16)));
#if defined(__AVX512F__)
    typedef float Eight __attribute__((vector_size(32)));
    const Eight eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                        __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    const Four four =
        __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#elif defined(__AVX__)
    const Four four = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
    const Four four = v;
#endif
    const Four two = four + __builtin_shufflevector(four, four, 2, 3, 0, 1);
    return two[0] + two[1];
}

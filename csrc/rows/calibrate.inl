// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of the
// standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.

// ---- one stored pixel

template <class T, class Word> inline T from_word(Word word) {
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}

inline uint8_t big_endian(uint8_t word) { return word; }
inline uint16_t big_endian(uint16_t word) {
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? word : __builtin_bswap16(word);
}
inline uint32_t big_endian(uint32_t word) {
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? word : __builtin_bswap32(word);
}
inline uint64_t big_endian(uint64_t word) {
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? word : __builtin_bswap64(word);
}

template <class T, class Word> inline T stored(const unsigned char* raw, ptrdiff_t i) {
    Word word;
    memcpy(&word, raw + i * static_cast<ptrdiff_t>(sizeof word), sizeof word);
    return from_word<T>(big_endian(word));
}

// ---- single precision: one fused loop

enum class Offset { none, bias, dark, both };

template <class T, class Word, Offset offset, bool flat>
__attribute__((noinline)) ptrdiff_t fused_loop(const CalibrateRow& row, float shift, float limit) {
    const unsigned char* __restrict__ raw = row.raw;
    const float* __restrict__ bias = row.bias;
    const float* __restrict__ dark = row.dark;
    const float* __restrict__ inv_flat = row.inv_flat;
    float* __restrict__ out = row.out;
    const float scale = row.dark_scale;
    const ptrdiff_t n = row.n;
    int32_t saturated = 0; // 32 bits wide as the pixels, so that the sum takes no conversion
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float value = static_cast<float>(stored<T, Word>(raw, i));
        saturated += value >= limit;
        float x = value + shift;
        if constexpr (offset == Offset::bias || offset == Offset::both)
            x -= bias[i];
        if constexpr (offset == Offset::dark || offset == Offset::both)
            x -= dark[i] * scale;
        if constexpr (flat)
            x *= inv_flat[i];
        out[i] = x;
    }
    return saturated;
}

template <class T, class Word> ptrdiff_t fused(const CalibrateRow& row) {
    const float shift = static_cast<float>(row.bzero - row.level);
    const double wanted = row.saturation - row.bzero;
    float limit = static_cast<float>(wanted);
    if (static_cast<double>(limit) < wanted) // rounded down: the next float is the first that reaches it
        limit = nextafterf(limit, HUGE_VALF);
    const int which = (row.bias ? 1 : 0) + (row.dark ? 2 : 0) + (row.inv_flat ? 4 : 0);
    switch (which) {
    case 0: return fused_loop<T, Word, Offset::none, false>(row, shift, limit);
    case 1: return fused_loop<T, Word, Offset::bias, false>(row, shift, limit);
    case 2: return fused_loop<T, Word, Offset::dark, false>(row, shift, limit);
    case 3: return fused_loop<T, Word, Offset::both, false>(row, shift, limit);
    case 4: return fused_loop<T, Word, Offset::none, true>(row, shift, limit);
    case 5: return fused_loop<T, Word, Offset::bias, true>(row, shift, limit);
    case 6: return fused_loop<T, Word, Offset::dark, true>(row, shift, limit);
    default: return fused_loop<T, Word, Offset::both, true>(row, shift, limit);
    }
}

// ---- double precision: a block at a time, one short loop for each step

constexpr ptrdiff_t exact_block = 512;

template <class T, class Word>
__attribute__((noinline)) int32_t exact_scale(const unsigned char* __restrict__ raw, ptrdiff_t n, double bscale,
                                              double bzero, double limit, double* __restrict__ value) {
    int32_t saturated = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const double scaled = static_cast<double>(stored<T, Word>(raw, i)) * bscale + bzero;
        saturated += scaled >= limit;
        value[i] = scaled;
    }
    return saturated;
}

template <class T, class Word>
__attribute__((noinline)) int32_t exact_blank(const unsigned char* __restrict__ raw, ptrdiff_t n, int64_t blank,
                                              double limit, double* __restrict__ value) {
    int32_t unsaturated = 0; // blank pixels that exact_scale counted
    for (ptrdiff_t i = 0; i < n; ++i) {
        const bool missing = stored<T, Word>(raw, i) == static_cast<T>(blank);
        unsaturated += missing & (value[i] >= limit);
        value[i] = missing ? static_cast<double>(NAN) : value[i];
    }
    return unsaturated;
}

__attribute__((noinline)) void exact_subtract(double* __restrict__ value, const float* __restrict__ master,
                                              ptrdiff_t n, double scale) {
    for (ptrdiff_t i = 0; i < n; ++i)
        value[i] -= static_cast<double>(master[i]) * scale;
}

__attribute__((noinline)) void exact_flat(const double* __restrict__ value, const float* __restrict__ inv_flat,
                                          ptrdiff_t n, double level, float* __restrict__ out) {
    for (ptrdiff_t i = 0; i < n; ++i)
        out[i] = static_cast<float>((value[i] - level) * static_cast<double>(inv_flat[i]));
}

__attribute__((noinline)) void exact_round(const double* __restrict__ value, ptrdiff_t n, double level,
                                           float* __restrict__ out) {
    for (ptrdiff_t i = 0; i < n; ++i)
        out[i] = static_cast<float>(value[i] - level);
}

template <class T, class Word, bool integer> ptrdiff_t exact(const CalibrateRow& row) {
    double value[exact_block];
    // A blank outside the range of the stored type marks nothing.
    const bool blank = integer && row.blank && static_cast<int64_t>(static_cast<T>(*row.blank)) == *row.blank;
    ptrdiff_t saturated = 0;
    for (ptrdiff_t start = 0; start < row.n; start += exact_block) {
        const ptrdiff_t n = row.n - start < exact_block ? row.n - start : exact_block;
        const unsigned char* raw = row.raw + start * static_cast<ptrdiff_t>(sizeof(Word));
        saturated += exact_scale<T, Word>(raw, n, row.bscale, row.bzero, row.saturation, value);
        if constexpr (integer)
            if (blank)
                saturated -= exact_blank<T, Word>(raw, n, *row.blank, row.saturation, value);
        if (row.bias)
            exact_subtract(value, row.bias + start, n, 1.0);
        if (row.dark)
            exact_subtract(value, row.dark + start, n, static_cast<double>(row.dark_scale));
        if (row.inv_flat)
            exact_flat(value, row.inv_flat + start, n, row.level, row.out + start);
        else
            exact_round(value, n, row.level, row.out + start);
    }
    return saturated;
}

constexpr CalibrateRows calibrate_rows = {
    fused<uint8_t, uint8_t>,
    fused<int16_t, uint16_t>,
    fused<float, uint32_t>,
    exact<uint8_t, uint8_t, true>,
    exact<int16_t, uint16_t, true>,
    exact<int32_t, uint32_t, true>,
    exact<int64_t, uint64_t, true>,
    exact<float, uint32_t, false>,
    exact<double, uint64_t, false>,
};

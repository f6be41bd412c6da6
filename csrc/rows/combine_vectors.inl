// Vectors of samples of one block; included by combine.inl.

#define FASTACK_INLINE inline __attribute__((always_inline))

constexpr int LANES = COMBINE_LANES; // of a block
#if defined(__AVX512F__)
constexpr int WIDTH = 16; // of a vector
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float VF __attribute__((vector_size(4 * WIDTH)));
typedef int32_t VI __attribute__((vector_size(4 * WIDTH)));
typedef uint8_t VB __attribute__((vector_size(WIDTH)));
typedef uint16_t VH __attribute__((vector_size(2 * WIDTH)));

FASTACK_INLINE VF load(const float* p) {
    VF v;
    memcpy(&v, p, sizeof v);
    return v;
}
FASTACK_INLINE void store(float* p, VF v) { memcpy(p, &v, sizeof v); }
FASTACK_INLINE void store(int32_t* p, VI v) { memcpy(p, &v, sizeof v); }
FASTACK_INLINE VF sample(const float* x, int i) { return load(x + (ptrdiff_t)i * LANES); }
FASTACK_INLINE VF splat(float s) { return VF{} + s; }
FASTACK_INLINE VI splat_int(int s) { return VI{} + s; }
FASTACK_INLINE VF smaller(VF a, VF b) { return a < b ? a : b; }
FASTACK_INLINE VF larger(VF a, VF b) { return a > b ? a : b; }
FASTACK_INLINE VF positive(VF a) { return a < VF{} ? VF{} : a; } // NaN stays
FASTACK_INLINE VF magnitude(VF a) { return a < VF{} ? -a : a; }
FASTACK_INLINE VI widen(const uint8_t* p) {
#if defined(__AVX512F__)
    return (VI)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    // in steps of two: beyond that GCC 12 goes lane by lane
    VB bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, VH), VI);
#endif
}
FASTACK_INLINE VF to_float(VI a) { return __builtin_convertvector(a, VF); }
FASTACK_INLINE VF root(VF a) {
    float lanes[WIDTH];
    store(lanes, a);
    for (int l = 0; l < WIDTH; ++l)
        lanes[l] = sqrtf(lanes[l]);
    return load(lanes);
}
FASTACK_INLINE bool any(VI mask) {
    int64_t part[sizeof mask / 8];
    memcpy(part, &mask, sizeof mask);
    int64_t all = 0;
    for (unsigned k = 0; k < sizeof mask / 8; ++k)
        all |= part[k];
    return all != 0;
}

FASTACK_INLINE VF load_bytes(const uint8_t* p) { return to_float(widen(p)); }

constexpr float INF = __builtin_inff();
constexpr float NOT_A_NUMBER = __builtin_nanf("");

FASTACK_INLINE VI count_present(const float* x, int n) {
    VI count{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        count -= v == v;
    }
    return count;
}

/// Some lanes of a block, from lane `at` on.
struct Part : CombineBlock {
    int at;

    Part(const CombineBlock& block, int lane) : CombineBlock(block), at(lane) {
        const auto move = [lane](auto*& p) { p = p ? p + lane : p; };
        move(x), move(work), move(shot), move(floor), move(factor), move(shade), move(given), move(near);
        move(shift), move(start), move(curvature), move(bend), move(range), move(stars);
    }
};

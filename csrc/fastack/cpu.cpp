#include "fastack/cpu.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <cstdint>

namespace fastack {
namespace {

struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
    Registers r{0, 0, 0, 0};
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

constexpr bool all(unsigned word, unsigned mask) { return (word & mask) == mask; }

} // namespace

int x86_level() {
    const Registers one = cpuid(1);
    // SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT
    if (!all(one.c, 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23))
        return 0;
    // FMA, MOVBE, OSXSAVE, AVX, F16C
    if (!all(one.c, 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29))
        return 2;
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const Registers seven = cpuid(7), extended = cpuid(0x80000001u);
    // XMM and YMM saved by the system; BMI1, AVX2, BMI2; LZCNT
    if (!all(low, 0x6) || !all(seven.b, 1u << 3 | 1u << 5 | 1u << 8) || !all(extended.c, 1u << 5))
        return 2;
    // opmask and ZMM saved by the system; AVX-512 F, DQ, CD, BW, VL
    if (!all(low, 0xe6) || !all(seven.b, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31))
        return 3;
    return 4;
}

} // namespace fastack

#else

namespace fastack {
int x86_level() { return 0; }
} // namespace fastack

#endif

// One instruction set: FASTACK_LEVEL is its name, also the namespace.
// Everything in here has internal linkage or lives in that namespace, so that no inline code of one level can
// be linked into another.

#include "rows/rows.hpp"

#include <math.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FASTACK_STRING_(x) #x
#define FASTACK_STRING(x) FASTACK_STRING_(x)

namespace fastack {
namespace FASTACK_LEVEL {
namespace {

#include "rows/lanes.inl"

#include "rows/calibrate.inl"

#include "rows/background.inl"

#include "rows/detect.inl"

#include "rows/measure.inl"

#include "rows/resample.inl"

#include "rows/combine.inl"

} // namespace

extern const Rows table;
const Rows table = {FASTACK_STRING(FASTACK_LEVEL), calibrate_rows, background_rows, detect_rows,
                    measure_rows,                  resample_rows,  combine_rows};

} // namespace FASTACK_LEVEL
} // namespace fastack

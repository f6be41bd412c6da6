#pragma once
// The inner loops, compiled once for each instruction set and chosen at import.

#include "rows/background.hpp"
#include "rows/calibrate.hpp"
#include "rows/combine.hpp"
#include "rows/detect.hpp"
#include "rows/measure.hpp"
#include "rows/resample.hpp"

namespace fastack {

struct Rows {
    const char* name;
    CalibrateRows calibrate;
    BackgroundRows background;
    DetectRows detect;
    MeasureRows measure;
    ResampleRows resample;
    CombineRows combine;
};

/// The table in use: the best that this processor runs, or the one that FASTACK_ISA names.
const Rows& rows();

/// Names of the levels that this build holds and this processor runs, lowest first, ended by nullptr.
const char* const* levels();

/// Choose a level by name (nullptr: the best). False where this build or processor does not have it.
bool choose(const char* name);

} // namespace fastack

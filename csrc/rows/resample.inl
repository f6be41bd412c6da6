// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of the
// standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.

constexpr ResampleRows resample_rows = {};

#define FASTACK_LEVEL neon
#include "rows/level.inl"

#define FASTACK_LEVEL v3
#include "rows/level.inl"

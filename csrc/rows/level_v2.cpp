#define FASTACK_LEVEL v2
#include "rows/level.inl"

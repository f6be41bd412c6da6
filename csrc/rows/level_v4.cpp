#define FASTACK_LEVEL v4
#include "rows/level.inl"

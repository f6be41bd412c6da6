#define FASTACK_LEVEL generic
#include "rows/level.inl"

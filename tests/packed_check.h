/* The packed kernels against their references, without cmocka: the NEON ones run under qemu-user in a program of their own
 * (tools/packed_neon.sh), where the libraries of the tests are missing. Returns the number of failures. */
#ifndef D2Q_TESTS_PACKED_CHECK_H
#define D2Q_TESTS_PACKED_CHECK_H

#include "backend/packed.h"

/* Does k agree with generic within float rounding, and with a sum in double within the stated bound? */
int packed_check(const struct packed_kernels *k, const struct packed_kernels *generic);

#endif

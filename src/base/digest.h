/* digest: SHA-256 (by libnettle). */
#ifndef D2Q_BASE_DIGEST_H
#define D2Q_BASE_DIGEST_H

#include "base/err.h"

/* Of a file's bytes, as 64 lower-case hex digits and NUL. */
int file_sha256(const char *path, char hex[65], struct err *e);
/* Of what was fed to ctx, which begins anew. */
struct sha256_ctx;
void digest_hex(struct sha256_ctx *ctx, char hex[65]);

#endif

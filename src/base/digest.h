/* digest: SHA-256 (by libnettle). */
#ifndef D2Q_BASE_DIGEST_H
#define D2Q_BASE_DIGEST_H

#include <stddef.h>

#include "base/err.h"
#include "base/file.h"

/* Of a file's bytes, as 64 lower-case hex digits and NUL. */
int file_sha256(const char *path, char hex[65], struct err *e);
/* Of a mapped file, whose pages leave memory as they are read. */
void file_map_sha256(const struct file_map *m, char hex[65]);
/* Of n bytes in memory. */
void bytes_sha256(const void *p, size_t n, char hex[65]);
/* Of what was fed to ctx, which begins anew. */
struct sha256_ctx;
void digest_hex(struct sha256_ctx *ctx, char hex[65]);

#endif

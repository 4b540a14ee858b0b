#include "base/digest.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <nettle/sha2.h>

#include "base/mem.h"

#define BUFFER ((size_t)1 << 20)

int file_sha256(const char *path, char hex[65], struct err *e)
{
    struct sha256_ctx ctx;
    uint8_t *buf = mem_alloc(BUFFER, 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = -1;
    if (!buf)
        err_nomem(e, path, BUFFER);
    else if (fd < 0)
        err_errno(e, "%s", path);
    else {
        sha256_init(&ctx);
        while ((n = read(fd, buf, BUFFER)) > 0)
            sha256_update(&ctx, (size_t)n, buf);
        if (n < 0)
            err_errno(e, "%s", path);
    }
    if (fd >= 0)
        close(fd);
    mem_free(buf);
    if (n < 0)
        return -1;
    digest_hex(&ctx, hex);
    return 0;
}

void digest_hex(struct sha256_ctx *ctx, char hex[65])
{
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(ctx, sizeof digest, digest);
    for (size_t i = 0; i < sizeof digest; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

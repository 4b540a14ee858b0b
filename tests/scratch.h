/* scratch: folders and hand-made files for tests. All functions fail the running test on error. */
#ifndef D2Q_TESTS_SCRATCH_H
#define D2Q_TESTS_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

/* A fresh folder under $TMPDIR; scratch_remove deletes it with what is in it (one level of folders). */
const char *scratch_dir(void);
void scratch_remove(const char *dir);
/* "<dir>/<name>", valid until the eighth next call. */
const char *scratch_path(const char *dir, const char *name);
void scratch_write(const char *path, const void *data, size_t n);
/* A safetensors file from a header's text: length word (len, or the text's own when < 0), text, n_data bytes
 * counting 0,1,2..., cut to keep bytes in all when keep >= 0. */
void scratch_safetensors(const char *path, const char *header, int64_t len, size_t n_data, int64_t keep);

#endif

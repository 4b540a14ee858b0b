/* tokenizer: text <-> token ids, equal to transformers' tokenizers.
 *
 * Byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen2/2.5/3) and SentencePiece-style BPE (Llama 2,
 * Mistral), from tokenizer.json or from GGUF metadata. Immutable after loading: any number of
 * threads may encode at once (each call has its own scratch). */
#ifndef D2Q_MODEL_TOKENIZER_H
#define D2Q_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "io/checkpoint.h"

struct tokenizer; /* tokenizer.c */

/* From whatever the checkpoint holds. An unknown pre-tokenizer, normalizer or model is refused by name. */
int tokenizer_load(struct tokenizer **out, const struct checkpoint *c, struct err *e);
void tokenizer_free(struct tokenizer *t);

struct token_list { /* tokens are appended; mem_free(ids) */
    int32_t *ids;
    size_t n, cap;
};

/* specials: text of special tokens becomes those tokens (transformers' default), else plain text; added tokens that are
 * not special are found either way.
 * add_bos: what the tokenizer itself adds around a sequence (BOS, where it has that rule) is added. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool add_bos, bool specials,
                     struct token_list *out, struct err *e);
/* Appends the bytes of one token (partial UTF-8 possible) to buf; returns their number. Control tokens give
 * their text if show_special, else nothing. cap may be 0 to ask for the length. */
size_t tokenizer_piece(const struct tokenizer *t, int32_t id, bool show_special, char *buf, size_t cap);
/* Whole sequence, as transformers' decode(skip_special_tokens=!show_special, clean_up_tokenization_spaces=False);
 * fresh NUL-terminated string (mem_free). */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool show_special,
                     char **text, size_t *len, struct err *e);

int32_t tokenizer_n_vocab(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t);  /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *t);  /* -1: none */
bool tokenizer_adds_bos(const struct tokenizer *t);
bool tokenizer_is_eog(const struct tokenizer *t, int32_t id); /* ends generation (eos, eot, im_end...) */
const char *tokenizer_chat_template(const struct tokenizer *t); /* Jinja text or NULL */

/* tokenizer.json, tokenizer_config.json, special_tokens_map.json into folder dir: copied, with other files of a tokenizer, when the
 * checkpoint is a Hugging Face folder (t NULL allowed then), made from the metadata when it is a GGUF file. transformers'
 * AutoTokenizer loads them and gives the same ids. */
int tokenizer_write_hf(const struct tokenizer *t, const struct checkpoint *c, const char *dir, struct err *e);
/* Can what is to be copied be read (links may lead out of the folder)? For asking before hours of work. */
int tokenizer_check_hf(const struct checkpoint *c, struct err *e);

/* The same as GGUF metadata (tokenizer.*), for a model of n_vocab rows: copied when the checkpoint is a GGUF file, else
 * made; ERR_UNSUPPORTED for a pre-tokenizer that GGUF has no name for. What GGUF has no key for is told to log. */
int tokenizer_write_gguf(const struct tokenizer *t, const struct checkpoint *c, int64_t n_vocab, struct gguf_writer *w,
                         const struct log *log, struct err *e);
/* Can it be written so? Asked before the work. Special and added tokens beyond n_vocab are left out. */
int tokenizer_check_gguf(const struct tokenizer *t, const struct checkpoint *c, int64_t n_vocab, struct err *e);
/* Do both make the same ids of a text with many kinds of words and of the text of many of a's tokens, but for when a space is put in front, which GGUF
 * cannot say as finely? -1: they differ. */
int tokenizer_compare(const struct tokenizer *a, const struct tokenizer *b, struct err *e);

#endif

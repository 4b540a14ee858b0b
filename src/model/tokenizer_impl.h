/* tokenizer_impl: the parts of a tokenizer, shared by tokenizer*.c only.
 *
 *   text --added tokens cut out--> pieces --normalize--> --pre-tokenize--> words --BPE--> ids
 *
 * Both kinds of vocabulary end in one BPE over token ids: a pair of ids has a rank and a merged id. Byte-level: symbols
 * are bytes, and `raw` of a token is the bytes it stands for. SentencePiece: symbols are characters, `raw` is the
 * piece as it stands in the file, with U+2581 for a space. */
#ifndef D2Q_MODEL_TOKENIZER_IMPL_H
#define D2Q_MODEL_TOKENIZER_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/tokenizer.h"

enum token_kind { TOKEN_NORMAL, TOKEN_ADDED, TOKEN_SPECIAL, TOKEN_BYTE, TOKEN_UNUSED };

/* tokenizer.ggml.token_type */
enum { GGUF_TOKEN_NORMAL = 1, GGUF_TOKEN_UNKNOWN, GGUF_TOKEN_CONTROL, GGUF_TOKEN_USER, GGUF_TOKEN_UNUSED, GGUF_TOKEN_BYTE };

struct token {
    const char *raw; /* NUL-terminated, but may hold NUL bytes: use n */
    size_t n;
    enum token_kind kind;
    uint8_t byte;    /* TOKEN_BYTE */
};

/* Open-addressing map from bytes to token ids; size is a power of two. */
struct str_map {
    int32_t *slot; /* index + 1 into tokens, 0: free */
    uint32_t size;
};

struct merge {
    int32_t left, right, id;
    uint32_t rank; /* lower merges first */
};

struct merge_map {
    struct merge *slot; /* id < 0: free */
    uint32_t size;
};

struct added {
    const char *text;
    size_t n;
    int32_t id;
    bool special, lstrip, rstrip;
    bool normalized; /* stands in the text as the normalizer leaves it */
};

struct added_list {
    struct added *a; /* longest first once sorted (sort_added) */
    size_t n;
    uint8_t first[256]; /* bytes that one of them may begin with */
};

enum pre_kind { PRE_SPLIT, PRE_REMOVE };

#define MAX_PRE 8
struct tokenizer {
    struct arena arena;
    struct token *tokens;
    int32_t n;
    struct str_map map;
    struct merge_map merges;
    struct added_list added;
    struct added_list normed; /* those with `normalized` where the normalizer marks spaces, text as it leaves it */
    bool byte_level, ignore_merges, byte_fallback, nfc, add_bos, add_eos;
    bool space_marker;        /* " " becomes U+2581 (SentencePiece) */
    bool space_prefix;        /* a text piece gets U+2581 in front */
    bool prefix_first_only;   /* ... only at the very start of the text */
    bool prefix_if_missing;   /* ... only if there is none already (Metaspace) */
    bool add_prefix_space;    /* byte-level: a text piece gets " " in front */
    int32_t byte_id[256];     /* token of a byte, -1: none */
    int32_t bos, eos, unk, pad;
    uint8_t *eog;             /* (n) */
    pcre2_code *pre[MAX_PRE];
    enum pre_kind pre_kind[MAX_PRE];
    const char *pre_text[MAX_PRE];
    int n_pre;
    const char *chat_template;
    const char *what; /* the file, for messages */
};

/* ---- tok_bpe.c ------------------------------------------------------------- */

int str_map_build(struct tokenizer *t, struct err *e);
int32_t str_map_find(const struct tokenizer *t, const char *s, size_t n); /* -1: none */
int merge_map_init(struct tokenizer *t, size_t n_merges, struct err *e);
void merge_map_add(struct tokenizer *t, int32_t left, int32_t right, int32_t id, uint32_t rank);
/* merges of a vocabulary that has scores only: every split of a piece into two pieces, best score first. When out is
 * not NULL, the list (in rank order) is returned in the arena. */
int merges_from_scores(struct tokenizer *t, const float *score, struct merge **out, size_t *n, struct err *e);

struct bpe_scratch {
    void *nodes, *heap;
    size_t cap_nodes, cap_heap;
};
void bpe_scratch_release(struct bpe_scratch *s);
/* Appends the ids of one word. */
int bpe_word(const struct tokenizer *t, const char *s, size_t n, struct bpe_scratch *scratch,
             struct token_list *out, struct err *e);
int token_list_add(struct token_list *l, int32_t id, struct err *e);

/* All merges in the order of their rank (mem_free). NULL: out of memory. */
struct merge *merges_by_rank(const struct tokenizer *t, size_t *n);

/* ---- tok_pre.c ------------------------------------------------------------- */

int pre_add(struct tokenizer *t, const char *regex, enum pre_kind kind, struct err *e);
/* Calls word(ud, s, n) for each pre-token of valid UTF-8 text. */
typedef int (*word_fn)(void *ud, const char *s, size_t n, struct err *e);
int pre_split(const struct tokenizer *t, const char *s, size_t n, word_fn word, void *ud, struct err *e);
/* Length of the valid UTF-8 sequence at s (1..4), 0 if invalid. */
size_t utf8_len(const char *s, size_t n);
extern const char regex_gpt2[], regex_llama3[], regex_qwen2[];
/* The regexes of a GGUF file's tokenizer.ggml.pre; NULL: unknown name. Ends with NULL. */
const char *const *pre_by_name(const char *name, bool *ignore_merges);
/* The other way: the name whose steps are t's; one with t's ignore_merges if there is any. NULL: none. */
const char *pre_name(const struct tokenizer *t);

/* ---- loading and writing --------------------------------------------------- */

/* GPT-2's byte <-> character table. byte_char writes 1 or 2 bytes of UTF-8; raw_from_chars decodes such text in place,
 * false if a character is not of the table. */
size_t byte_char(uint8_t byte, char out[2]);
bool raw_from_chars(const char *s, size_t n, char *out, size_t *out_n);
/* "<0xAB>": the name of a byte token. */
bool byte_name(const char *s, size_t n, uint8_t *byte);
/* After the normalizer is known: fills t->normed, which takes its tokens from t->added. */
int tokenizer_normalize_added(struct tokenizer *t, struct err *e);
/* The added token of that id that is looked for in normalized text; NULL: it is none. */
const struct added *tokenizer_normed(const struct tokenizer *t, int32_t id);
/* raw, a copy of the text s of a byte-level token, becomes the bytes that it stands for; it stands as it is where a character is not of the
 * table: never made by merging. */
void token_bytes(struct token *k, char *raw, const char *s, size_t n);
/* id, if there is such a token, ends a text. */
void tokenizer_add_eog(struct tokenizer *t, int64_t id);
/* After tokens[] are set: maps, byte ids, eog. */
int tokenizer_finish(struct tokenizer *t, struct err *e);
int tokenizer_from_json(struct tokenizer *t, const struct checkpoint *c, struct err *e);
int tokenizer_from_gguf(struct tokenizer *t, const struct checkpoint *c, struct err *e);

#endif

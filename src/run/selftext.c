/* selftext: calibration text from the model itself, several sequences at once.
 *
 * Decoding reads every weight for each token; a batch of sequences shares that, which makes it several times
 * as fast. Each sequence has its own random stream, so it does not depend on its neighbours (but for
 * the last bits of products of another height). Packed weights stay packed, activations have 8 bits: it is text, not statistics. */
#include <string.h>

#include "base/par.h"
#include "run/session.h"

#define CACHE_BYTES ((uint64_t)1 << 30)
#define MAX_BATCH 32
#define FREE_TOKENS 4 /* after each start, sampled at FREE_TEMP */
#define FREE_TEMP 1.5
#define TRIES 1000

struct writer { /* one sequence that is being written */
    struct rng rng;
    struct candidate *scratch; /* (n_vocab) */
    int64_t since; /* tokens since its text began */
};

struct batch {
    const struct model *m;
    struct writer *w;   /* (n_seq) */
    struct kv_cache **c;
    float *logits;      /* (n_seq, n_vocab) */
    int32_t *ids;       /* (n_seq): the last token of each */
    int64_t n_seq;
    struct arena arena;
};

/* A token that can begin a text: an upper-case ASCII letter, perhaps after a space. Any at all where the
 * vocabulary has (nearly) none. */
static int32_t start_token(const struct model *m, struct rng *r)
{
    int32_t id = 0;
    for (int t = 0; t < TRIES; t++) {
        char piece[64];
        id = (int32_t)(rng_next(r) % (uint64_t)m->hp.n_vocab);
        if (!m->tok)
            break;
        if (id >= tokenizer_n_vocab(m->tok) || tokenizer_is_eog(m->tok, id))
            continue;
        size_t n = tokenizer_piece(m->tok, id, false, piece, sizeof piece);
        size_t at = n > 1 && n <= sizeof piece && piece[0] == ' ';
        if (n > at && n <= sizeof piece && piece[at] >= 'A' && piece[at] <= 'Z')
            break;
    }
    return id;
}

static void write_one(void *ctx, size_t i, int worker)
{
    (void)worker;
    struct batch *b = ctx;
    struct writer *w = &b->w[i];
    const struct model *m = b->m;
    struct sample_options o = { .temp = w->since < FREE_TOKENS ? FREE_TEMP : 1, .top_p = 1 };
    if (w->since < 0) { /* the last token ended a text */
        b->ids[i] = start_token(m, &w->rng);
        w->since = 0;
        return;
    }
    b->ids[i] = sample_token(b->logits + (int64_t)i * m->hp.n_vocab, m->hp.n_vocab, &o, &w->rng, w->scratch);
    w->since = m->tok && tokenizer_is_eog(m->tok, b->ids[i]) ? -1 : w->since + 1;
}

static int batch_init(struct batch *b, const struct model *m, int64_t n_seq, int64_t cap, struct err *e)
{
    memset(b, 0, sizeof *b);
    arena_init(&b->arena);
    b->m = m;
    b->w = arena_zalloc(&b->arena, (size_t)n_seq, sizeof *b->w);
    b->c = arena_zalloc(&b->arena, (size_t)n_seq, sizeof *b->c);
    b->ids = arena_zalloc(&b->arena, (size_t)n_seq, sizeof *b->ids);
    b->logits = arena_alloc(&b->arena, (size_t)n_seq, (size_t)m->hp.n_vocab * sizeof(float));
    if (!b->w || !b->c || !b->ids || !b->logits)
        return err_nomem(e, "batch", (size_t)(n_seq * m->hp.n_vocab) * sizeof(float));
    for (int64_t i = 0; i < n_seq; i++) {
        b->w[i].scratch = arena_alloc(&b->arena, (size_t)m->hp.n_vocab, sizeof(struct candidate));
        struct kv_cache *c = arena_zalloc(&b->arena, 1, sizeof *c);
        if (!b->w[i].scratch || !c)
            return err_nomem(e, "batch", (size_t)m->hp.n_vocab * sizeof(struct candidate));
        if (kv_init(c, &m->hp, cap, i ? 1 : n_seq, e))
            return -1;
        c->packed = true;
        b->c[i] = c;
        b->n_seq++;
    }
    return 0;
}

static void batch_release(struct batch *b)
{
    for (int64_t i = 0; i < b->n_seq; i++)
        kv_release(b->c[i]);
    arena_release(&b->arena);
}

struct progress {
    const struct log *log;
    double done, total; /* tokens */
};

/* Sequences first .. first+n-1 of the run, into out (n, n_tokens). */
static int write_batch(struct batch *b, int64_t first, int64_t n, int64_t n_tokens, uint64_t seed,
                       int32_t *out, struct progress *p, struct err *e)
{
    const struct tokenizer *tok = b->m->tok;
    int32_t bos = tok && tokenizer_adds_bos(tok) ? tokenizer_bos(tok) : -1;
    for (int64_t i = 0; i < n; i++) {
        rng_init(&b->w[i].rng, seed, (uint64_t)(first + i));
        b->w[i].since = bos >= 0 ? 0 : -1;
        b->c[i]->n = 0;
        b->ids[i] = bos;
    }
    for (int64_t t = 0; t < n_tokens; t++) {
        if (t == 1 && bos >= 0)
            for (int64_t i = 0; i < n; i++)
                b->w[i].since = -1; /* a random word after BOS */
        if (t > 0 || bos < 0)
            par_for((size_t)n, write_one, b);
        for (int64_t i = 0; i < n; i++)
            out[i * n_tokens + t] = b->ids[i];
        if (t + 1 < n_tokens && kv_step(b->m, b->c, n, b->ids, b->logits, e))
            return -1;
        p->done += (double)n;
        if (log_progress(p->log, "calibration text", p->done, p->total, e))
            return -1;
    }
    return 0;
}

/* Room for n more. */
static int reserve(struct token_list *l, size_t n, struct err *e)
{
    if (l->cap - l->n >= n)
        return 0;
    int32_t *p = mem_grow(l->ids, l->n, l->n + n, sizeof *p);
    if (!p)
        return err_nomem(e, "tokens", (l->n + n) * sizeof *p);
    l->ids = p;
    l->cap = l->n + n;
    return 0;
}

/* Sequences of a batch. */
static int64_t batch_size(const struct model *m, int64_t n_seq, int64_t n_tokens, uint64_t cache_bytes)
{
    uint64_t fit = (cache_bytes ? cache_bytes : CACHE_BYTES) / kv_bytes(&m->hp, n_tokens);
    int64_t size = fit < 1 ? 1 : fit > MAX_BATCH ? MAX_BATCH : (int64_t)fit;
    int64_t rounds = (n_seq + size - 1) / size;
    return (n_seq + rounds - 1) / rounds; /* batches of about one size */
}

uint64_t session_text_bytes(const struct model *m, int64_t n_seq, int64_t n_tokens)
{
    uint64_t one = kv_bytes(&m->hp, n_tokens) + (uint64_t)m->hp.n_vocab * (sizeof(float) + sizeof(struct candidate));
    return (uint64_t)batch_size(m, n_seq, n_tokens, 0) * one;
}

int session_generate_text(const struct model *m, int64_t n_seq, int64_t n_tokens, uint64_t seed,
                          uint64_t cache_bytes, const struct log *log, struct token_list *out, struct err *e)
{
    if (n_seq < 1 || n_tokens < 1 || n_seq > INT32_MAX || n_tokens > INT32_MAX)
        return err_set(e, ERR_USAGE, "%lld sequences of %lld tokens make no sense", (long long)n_seq,
                       (long long)n_tokens);
    int64_t size = batch_size(m, n_seq, n_tokens, cache_bytes);
    struct progress p = { log, 0, (double)n_seq * (double)n_tokens };
    struct batch b;
    if (reserve(out, (size_t)n_seq * (size_t)n_tokens, e))
        return -1;
    int rc = batch_init(&b, m, size, n_tokens, e);
    for (int64_t i = 0; !rc && i < n_seq; i += size) {
        int64_t n = n_seq - i < size ? n_seq - i : size;
        rc = write_batch(&b, i, n, n_tokens, seed, out->ids + out->n, &p, e);
        out->n += rc ? 0 : (size_t)(n * n_tokens);
    }
    batch_release(&b);
    model_forget_repacked(m);
    return rc;
}

/* session: see session.h. */
#include "run/session.h"

#include <string.h>

#define PREFILL 512 /* tokens of a prompt at once */
#define MAX_PIECE 512

int session_init(struct session *s, const struct model *m, int64_t cap, struct err *e)
{
    memset(s, 0, sizeof *s);
    arena_init(&s->arena);
    s->m = m;
    if (cap < 1)
        return err_set(e, ERR_USAGE, "a session of %lld tokens makes no sense", (long long)cap);
    if (kv_init(&s->kv, &m->hp, cap, cap < PREFILL ? cap : PREFILL, e))
        return -1;
    s->kv.packed = true;
    s->logits = arena_alloc(&s->arena, (size_t)m->hp.n_vocab, sizeof *s->logits);
    s->scratch = arena_alloc(&s->arena, (size_t)m->hp.n_vocab, sizeof *s->scratch);
    if (!s->logits || !s->scratch) {
        session_release(s);
        return err_nomem(e, "session", (size_t)m->hp.n_vocab * 12);
    }
    return 0;
}

void session_release(struct session *s)
{
    kv_release(&s->kv);
    arena_release(&s->arena);
    memset(s, 0, sizeof *s);
}

/* *done: how many were run; fewer than n when emit stopped it. */
static int prefill(struct session *s, const int32_t *ids, int64_t n, session_emit_fn emit, void *ud, int64_t *done, struct err *e)
{
    int64_t batch = s->kv.f.cap, k;
    for (*done = 0; *done < n; *done += k) {
        k = n - *done < batch ? n - *done : batch;
        if (emit && emit(ud, -1, "", 0))
            return 0;
        if (kv_forward(s->m, &s->kv, ids + *done, k, false, *done + k == n ? s->logits : NULL, e))
            return -1;
    }
    return 0;
}

int session_generate(struct session *s, const int32_t *ids, int64_t n, const struct session_options *o,
                     session_emit_fn emit, void *ud, struct session_stats *st, struct err *e)
{
    const struct tokenizer *tok = s->m->tok;
    struct rng rng;
    double start = log_now();
    memset(st, 0, sizeof *st);
    rng_init(&rng, o->seed, 0);
    if (n < 1 && s->kv.n == 0)
        return err_set(e, ERR_USAGE, "the prompt is empty, and the model has no start token to begin with");
    if (prefill(s, ids, n, emit, ud, &st->n_prompt, e))
        return -1;
    st->prefill_seconds = log_now() - start;
    if (st->n_prompt < n)
        return 0;
    start = log_now();
    for (; st->n_new < o->max_new; st->n_new++) {
        char piece[MAX_PIECE];
        for (int64_t i = 0; i < s->m->hp.n_vocab; i++)
            if (s->logits[i] - s->logits[i] != 0)
                return err_set(e, ERR_NUMERIC, "the model's output is not finite at position %lld, word %lld", (long long)s->kv.n, (long long)i);
        int32_t id = sample_token(s->logits, s->m->hp.n_vocab, &o->sample, &rng, s->scratch);
        st->ended = tok && !o->ignore_eog && tokenizer_is_eog(tok, id);
        if (st->ended)
            break;
        size_t len = 0;
        if (tok && id < tokenizer_n_vocab(tok))
            len = tokenizer_piece(tok, id, false, piece, sizeof piece);
        bool stop = (emit && emit(ud, id, piece, len < sizeof piece ? len : sizeof piece)) || s->kv.n == s->kv.cap; /* full: it ends here */
        /* the last token is run too, so that a further call goes on after it */
        if (s->kv.n < s->kv.cap && kv_forward(s->m, &s->kv, &id, 1, false, s->logits, e))
            return -1;
        if (stop) {
            st->n_new++;
            break;
        }
    }
    st->decode_seconds = log_now() - start;
    return 0;
}

int session_run(const struct model *m, const char *prompt, size_t n, const struct session_options *o,
                session_emit_fn emit, void *ud, struct session_stats *st, struct err *e)
{
    struct token_list ids = { 0 };
    struct session s;
    if (model_whole(m, e))
        return -1;
    if (!m->tok)
        return err_set(e, ERR_USAGE, "%s: there is no tokenizer (of a folder tokenizer.json is read), so text cannot be generated", m->ck->path);
    if (o->max_new < 0 || o->max_new > INT32_MAX)
        return err_set(e, ERR_USAGE, "%lld new tokens make no sense", (long long)o->max_new);
    int rc = tokenizer_encode(m->tok, prompt, n, true, true, &ids, e);
    if (!rc && !(rc = session_init(&s, m, (int64_t)ids.n + o->max_new + 1, e))) {
        rc = session_generate(&s, ids.ids, (int64_t)ids.n, o, emit, ud, st, e);
        session_release(&s);
    }
    mem_free(ids.ids);
    return rc;
}

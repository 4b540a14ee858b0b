/* speed: see speed.h. */
#include "run/speed.h"

#include "base/log.h"
#include "base/mem.h"
#include "run/session.h"

#define WARM 26 /* tokens: by then weights are repacked (packed_lanes.c) */

static int one_round(struct session *s, const int32_t *ids, int64_t n_prefill, int64_t n_decode, double *prefill, double *decode,
                     struct err *e)
{
    struct session_options o = { .ignore_eog = true };
    struct session_stats st;
    s->kv.n = 0;
    *prefill = *decode = 0;
    if (n_prefill > 0) {
        if (session_generate(s, ids, n_prefill, &o, NULL, NULL, &st, e))
            return -1;
        *prefill = (double)n_prefill / st.prefill_seconds;
        s->kv.n = 0;
    }
    if (n_decode > 0) {
        o.max_new = n_decode;
        if (session_generate(s, ids, 1, &o, NULL, NULL, &st, e))
            return -1;
        *decode = (double)n_decode / st.decode_seconds;
    }
    return 0;
}

static int64_t stored_bytes(const struct tensor *w)
{
    const struct qmat *q = w->q;
    return w->type == DT_QMAT ? q->n_out * (4 * q->row_words + 3 * q->n_groups) : (int64_t)w->size;
}

static int64_t weight_bytes(const struct model *m)
{
    int64_t bytes = stored_bytes(&m->lm_head);
    for (int64_t i = 0; i < m->hp.n_layer; i++)
        for (int r = 0; r < ROLE_COUNT; r++)
            bytes += stored_bytes(&m->layers[i].lin[r].w);
    return bytes;
}

int speed_measure(const struct model *m, struct speed *p, struct err *e)
{
    int64_t cap = (p->n_prefill > p->n_decode ? p->n_prefill : p->n_decode) + WARM;
    struct session s;
    struct rng rng;
    p->prefill_per_second = p->decode_per_second = 0;
    int32_t *ids = mem_alloc((size_t)cap, sizeof *ids);
    if (!ids)
        return err_nomem(e, "tokens", (size_t)cap * sizeof *ids);
    rng_init(&rng, 1, 0);
    for (int64_t i = 0; i < cap; i++)
        ids[i] = (int32_t)(rng_uniform(&rng) * (double)m->hp.n_vocab);
    int rc = session_init(&s, m, cap, e);
    if (!rc) {
        double prefill, decode;
        p->bytes = weight_bytes(m);
        rc = one_round(&s, ids, p->n_prefill > 0 ? WARM : 0, p->n_decode > 0 ? WARM : 0, &prefill, &decode, e);
        for (int64_t i = 0; i < p->rounds && !rc; i++) {
            rc = one_round(&s, ids, p->n_prefill, p->n_decode, &prefill, &decode, e);
            p->prefill_per_second = prefill > p->prefill_per_second ? prefill : p->prefill_per_second;
            p->decode_per_second = decode > p->decode_per_second ? decode : p->decode_per_second;
        }
        session_release(&s);
    }
    mem_free(ids);
    return rc;
}

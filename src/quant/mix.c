#include "quant/mix.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/linalg.h"
#include "base/rng.h"
#include "model/backward.h"
#include "quant/solve.h"

#define STEPS 6 /* of the ladder */
static const enum grid_id ladder[STEPS] = { GRID_q2_k, GRID_q3_k, GRID_q4_k, GRID_q5_k, GRID_q6_k, GRID_q8_0 };

struct choice {
    char name[96];          /* of quant_keep */
    bool fixed;             /* the user's */
    int n, at;              /* types that differ; the one taken */
    enum grid_id grid[STEPS];
    double bytes[STEPS], loss[STEPS];
    double cross;           /* as loss[0], but squares of whole sequences' sums */
};

struct mix {
    struct model *m;
    const struct calib *c;
    int64_t n_seq, n_tok, longest, d;
    int64_t *start;         /* (n_seq + 1) among the tokens used */
    int32_t *ids;           /* (n_tok) */
    float *h, *dh;          /* (n_layer + 1, n_tok, d) inputs of all blocks and the output; (n_tok, d) */
    float *x[ROLE_COUNT], *dy[ROLE_COUNT]; /* of one block, all sequences; x of k, v and up is that of q and gate */
    int64_t at;             /* first token of the sequence under way */
    struct choice *choice;  /* (n_layer * ROLE_COUNT + 2): the last two are embeddings and head */
    struct bwd b;
    const struct log *log;
    double done;            /* blocks; the forward pass counts as a quarter each */
    struct arena arena;
};

/* Also where a cancelled run ends. */
static int progress(const struct mix *k, struct err *e)
{
    return log_progress(k->log, "measuring types", k->done, (double)k->m->hp.n_layer * 1.25, e);
}

static enum role x_role(enum role r)
{
    return r <= ROLE_V ? ROLE_Q : r == ROLE_UP ? ROLE_GATE : r;
}

/* ---- what a type costs -------------------------------------------------------------- */

/* Of a matrix on g in a GGUF file. */
static double stored_bytes(const struct grid *g, int64_t rows, int64_t cols)
{
    enum dtype type = grid_stored(g, cols);
    double bits = type == DT_COUNT ? grid_row_bits(g, cols) /* it will be refused */ : dtype_bits(type) * (double)cols;
    return bits / 8 * (double)rows;
}

static void choice_init(struct choice *c, const struct quant_options *o, const char *name, const struct tensor *w)
{
    int64_t rows = tensor_rows(w), cols = tensor_cols(w);
    struct grid g;
    snprintf(c->name, sizeof c->name, "%s", name);
    c->fixed = quant_grid_kept(o, name, cols, &g);
    for (int i = 0; i < (c->fixed ? 1 : STEPS); i++) {
        if (!c->fixed)
            grid_init(&g, ladder[i], 0, 0, 0, cols);
        double bytes = stored_bytes(&g, rows, cols);
        if (!c->n || bytes > c->bytes[c->n - 1]) { /* narrow rows: several steps fall back to one type */
            c->grid[c->n] = g.id;
            c->bytes[c->n++] = bytes;
        }
    }
}

#define ROWS 4096 /* of a matrix at a time */

/* Gradients at a matrix's outputs. */
struct outputs {
    const float *dy;       /* (n, rows); or NULL, and those of a head: onehot - p, p = exp(logit - lse) */
    const double *lse;     /* (n) */
    const int32_t *token;  /* (n) */
};

#define WHOLE 2     /* types, the coarsest, measured on all rows: they cost most, and their errors have most in common */
#define SAMPLED 256 /* rows, about, for the others: finding scales is what takes time */

/* Scratch of one matrix. */
struct scratch {
    float *w, *e;    /* (chunk, cols): rows of W, and Q - W */
    float *y, *dy;   /* (n, chunk) */
    double *dot;     /* (WHOLE, n): dy . (Q - W) x of each token */
    double *xx, *yy; /* (cols), (rows): sums of squares of x and dy over tokens */
    struct arena arena;
};

static int scratch_init(struct scratch *s, int64_t n, int64_t chunk, int64_t rows, int64_t cols, struct err *e)
{
    arena_init(&s->arena);
    s->w = arena_alloc(&s->arena, (size_t)(chunk * cols), sizeof *s->w);
    s->e = arena_alloc(&s->arena, (size_t)(chunk * cols), sizeof *s->e);
    s->y = arena_alloc(&s->arena, (size_t)(n * chunk), sizeof *s->y);
    s->dy = arena_alloc(&s->arena, (size_t)(n * chunk), sizeof *s->dy);
    s->dot = arena_zalloc(&s->arena, (size_t)(WHOLE * n), sizeof *s->dot);
    s->xx = arena_zalloc(&s->arena, (size_t)cols, sizeof *s->xx);
    s->yy = arena_zalloc(&s->arena, (size_t)rows, sizeof *s->yy);
    if (s->w && s->e && s->y && s->dy && s->dot && s->xx && s->yy)
        return 0;
    arena_release(&s->arena);
    return err_nomem(e, "measuring types", (size_t)(2 * chunk * (cols + n)) * sizeof(float));
}

/* s->e (n, cols) = Q - W of the rows in s->w, rounded to nearest on id; 0 in float, which is for rows that no type divides. */
static int errors(struct scratch *s, enum grid_id id, int64_t n, int64_t cols, struct err *e)
{
    struct quant_options o = { .search = SEARCH_MSE };
    struct grid g;
    struct solve_in in = { .name = "matrix", .w = s->w, .n_out = n, .n_in = cols, .grid = &g };
    struct arena a;
    struct tensor q;
    grid_init(&g, id, 0, 0, 0, cols);
    if (g.kind == KIND_FLOAT) {
        memset(s->e, 0, (size_t)(n * cols) * sizeof *s->e);
        return 0;
    }
    arena_init(&a);
    int rc = grid_alloc(&g, &a, "matrix", n, cols, &q, e) || solve(&in, &o, &q, e) ? -1 : 0;
    if (!rc)
        tensor_to_f32(&q, s->e);
    for (int64_t i = 0; !rc && i < n * cols; i++)
        s->e[i] -= s->w[i];
    arena_release(&a);
    return rc;
}

/* n tokens, one after the other from the first of a sequence on. */
static void add_losses(const struct mix *k, struct choice *c, int i, const double *dot, int64_t n)
{
    for (int64_t t = 0; t < n; t++)
        c->loss[i] += dot[t] * dot[t] / 2;
    for (int64_t s = 0; i == 0 && s < k->n_seq && k->start[s] < n; s++) {
        double sum = 0;
        for (int64_t t = k->start[s]; t < k->start[s + 1] && t < n; t++)
            sum += dot[t];
        c->cross += sum * sum / 2;
    }
}

#define FEW 16 /* squares: their mean is still off by a third */

/* Errors of one matrix at different tokens reach the same prediction, by attention above all, so losses do not simply add up over tokens.
 * Squares of sums over sequences have the true expectation, but one matrix has few sequences: what they say is taken for
 * all blocks' matrices of a role together, and not at all where these are few too. */
static void scale_role(struct choice *c, int64_t n, int64_t step, int64_t n_seq)
{
    double tokens = 0, sequences = 0;
    int64_t sums = 0;
    for (int64_t i = 0; i < n; i += step)
        if (!c[i].fixed) {
            tokens += c[i].loss[0];
            sequences += c[i].cross;
            sums += n_seq;
        }
    for (int64_t i = 0; i < n && tokens > 0 && sums >= FEW; i += step)
        for (int k = 0; k < c[i].n; k++)
            c[i].loss[k] *= sequences / tokens;
}

/* dy of the rows [r, r + take), whose weights are in s->w: into s->dy. */
static void gradients(const struct outputs *out, struct scratch *s, const float *x, int64_t n, int64_t rows, int64_t cols, int64_t r,
                      int64_t take)
{
    if (!out->dy)
        la_sgemm(0, 1, n, take, cols, 1, x, cols, s->w, cols, 0, s->dy, take);
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < take; j++) {
            float *dy = s->dy + t * take + j;
            *dy = out->dy ? out->dy[t * rows + r + j] : (float)((out->token[t] == r + j) - exp((double)*dy - out->lse[t]));
            s->yy[r + j] += (double)*dy * *dy;
        }
}

/* Adds rows [r, r + take) to s->dot of the types of c that are measured on all. */
static int add_rows(struct scratch *s, const struct choice *c, const struct tensor *w, const float *x, const struct outputs *out, int64_t n,
                    int64_t r, int64_t take, struct err *e)
{
    int64_t cols = tensor_cols(w);
    tensor_rows_f32(w, r, take, s->w);
    gradients(out, s, x, n, tensor_rows(w), cols, r, take);
    for (int i = 0; i < WHOLE && i < c->n; i++) {
        if (errors(s, c->grid[i], take, cols, e))
            return -1;
        la_sgemm(0, 1, n, take, cols, 1, x, cols, s->e, cols, 0, s->y, take);
        for (int64_t t = 0; t < n; t++)
            for (int64_t j = 0; j < take; j++)
                s->dot[i * n + t] += (double)s->dy[t * take + j] * s->y[t * take + j];
    }
    return 0;
}

/* sum of dy^2 x^2 (Q - W)^2 over some rows, as if errors were independent: what a type costs beside another. */
static int measure_some(struct scratch *s, enum grid_id id, int64_t n, int64_t step, int64_t cols, double *sum, struct err *e)
{
    *sum = 0;
    if (errors(s, id, n, cols, e))
        return -1;
    for (int64_t i = 0; i < n; i++) {
        double row = 0;
        for (int64_t j = 0; j < cols; j++)
            row += s->xx[j] * (double)s->e[i * cols + j] * s->e[i * cols + j];
        *sum += s->yy[i * step] * row;
    }
    return 0;
}

/* What each type of w costs the outputs of x (n, cols), in c: the coarse ones by all rows and with all that errors have in common, the
 * others by how much smaller their errors are. */
static int measure(const struct mix *k, struct choice *c, const struct tensor *w, const float *x, const struct outputs *out, int64_t n,
                   struct err *e)
{
    int64_t cols = tensor_cols(w), rows = tensor_rows(w), chunk = rows < ROWS ? rows : ROWS;
    int64_t step = rows < 2 * SAMPLED ? 1 : rows / SAMPLED, some = (rows + step - 1) / step;
    struct scratch s;
    if (c->n < 2)
        return 0;
    if (scratch_init(&s, n, chunk, rows, cols, e))
        return -1;
    int rc = 0;
    for (int64_t r = 0; !rc && r < rows; r += chunk)
        rc = progress(k, e) || add_rows(&s, c, w, x, out, n, r, rows - r < chunk ? rows - r : chunk, e) ? -1 : 0;
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < cols; j++)
            s.xx[j] += (double)x[t * cols + j] * x[t * cols + j];
    for (int64_t i = 0; !rc && i < some; i++)
        tensor_rows_f32(w, i * step, 1, s.w + i * cols);
    double unit = (double)rows / (double)(2 * n * some); /* until a type with errors says what they have in common */
    for (int i = 0; !rc && i < c->n; i++) {
        double sum;
        rc = measure_some(&s, c->grid[i], some, step, cols, &sum, e);
        if (!rc && i < WHOLE)
            add_losses(k, c, i, s.dot + i * n, n);
        else
            c->loss[i] = unit * sum;
        if (!rc && i < WHOLE && sum > 0)
            unit = c->loss[i] / sum;
    }
    arena_release(&s.arena);
    return rc;
}

/* The same for the embedding, whose rows are looked up. */
static int measure_lookup(const struct mix *k, struct choice *c, struct err *e)
{
    const struct tensor *w = &k->m->tok_embd;
    const int32_t *ids = k->ids;
    const float *dh = k->dh;
    int64_t n = k->n_tok;
    int64_t cols = tensor_cols(w);
    struct scratch s;
    if (c->n < 2)
        return 0;
    if (scratch_init(&s, n, n, 0, cols, e))
        return -1;
    int rc = 0;
    for (int64_t t = 0; t < n; t++)
        tensor_rows_f32(w, ids[t], 1, s.w + t * cols);
    for (int i = 0; !rc && i < c->n; i++) {
        rc = errors(&s, c->grid[i], n, cols, e);
        for (int64_t t = 0; !rc && t < n; t++) {
            s.dot[t] = 0;
            for (int64_t j = 0; j < cols; j++)
                s.dot[t] += (double)dh[t * cols + j] * s.e[t * cols + j];
        }
        if (!rc)
            add_losses(k, c, i, s.dot, n);
    }
    arena_release(&s.arena);
    return rc;
}

/* ---- gradients ------------------------------------------------------------------------ */

#define HEAD_TOKENS 64

/* logits (n_vocab) become the gradient of log p of a token drawn from them: onehot - p. Returns the token. */
static int32_t draw(float *logits, int64_t n_vocab, struct rng *rng, double *lse)
{
    double sum = 0, at = 0;
    float top = logits[0];
    for (int64_t v = 1; v < n_vocab; v++)
        top = logits[v] > top ? logits[v] : top;
    for (int64_t v = 0; v < n_vocab; v++) {
        logits[v] = expf(logits[v] - top);
        sum += logits[v];
    }
    double want = rng_uniform(rng) * sum;
    int64_t token = n_vocab - 1;
    for (int64_t v = 0; v < n_vocab; v++) {
        at += logits[v];
        if (at > want) {
            token = v;
            break;
        }
    }
    for (int64_t v = 0; v < n_vocab; v++)
        logits[v] = (float)(-logits[v] / sum);
    logits[token] += 1;
    *lse = (double)top + log(sum);
    return (int32_t)token;
}

/* Tokens that the head is measured on: few tell enough of the widest matrix there is. */
struct head_tokens {
    float *x; /* (n, d) */
    double *lse;
    int32_t *token;
    int64_t n;
};

static int measure_head(const struct mix *k, struct choice *c, const struct head_tokens *h, struct err *e)
{
    struct outputs out = { .lse = h->lse, .token = h->token };
    if (measure(k, c, &k->m->lm_head, h->x, &out, h->n, e))
        return -1;
    for (int i = 0; i < c->n; i++) /* as if all had been asked */
        c->loss[i] *= (double)k->n_tok / (double)h->n;
    return 0;
}

/* k->dh from the outputs of the last block, and what types of the head cost. */
static int head(struct mix *k, const struct quant_options *o, struct choice *c, struct err *e)
{
    struct model *m = k->m;
    const float *h = k->h + m->hp.n_layer * k->n_tok * k->d;
    struct rng rng;
    struct grid g;
    struct arena a;
    struct head_tokens some = { .n = 0 };
    rng_init(&rng, 1, 7);
    arena_init(&a);
    float *logits = arena_alloc(&a, (size_t)(HEAD_TOKENS * m->hp.n_vocab), sizeof *logits);
    float *x = arena_alloc(&a, (size_t)(2 * HEAD_TOKENS * k->d), sizeof *x);
    some.x = arena_alloc(&a, (size_t)((k->n_tok / 4 + HEAD_TOKENS) * k->d), sizeof *some.x);
    some.lse = arena_alloc(&a, (size_t)k->n_tok, sizeof *some.lse);
    some.token = arena_alloc(&a, (size_t)k->n_tok, sizeof *some.token);
    int rc = logits && x && some.x && some.lse && some.token ? 0 : err_nomem(e, "logits", (size_t)(HEAD_TOKENS * m->hp.n_vocab) * sizeof *logits);
    for (int64_t t = 0; !rc && t < k->n_tok; t += HEAD_TOKENS) {
        int64_t n = k->n_tok - t < HEAD_TOKENS ? k->n_tok - t : HEAD_TOKENS, at = some.n;
        float *dx = x + HEAD_TOKENS * k->d;
        rc = fwd_logits(m, h + t * k->d, n, x, logits, e);
        for (int64_t i = 0; !rc && i < n; i++)
            some.token[at + i] = draw(logits + i * m->hp.n_vocab, m->hp.n_vocab, &rng, &some.lse[at + i]);
        if (t / HEAD_TOKENS % 4 == 0) {
            memcpy(some.x + at * k->d, x, (size_t)(n * k->d) * sizeof *x);
            some.n += n;
        }
        rc = rc || bwd_linear(&m->lm_head, logits, n, dx, false, e) ||
             bwd_rmsnorm(h + t * k->d, m->out_norm, dx, n, k->d, m->hp.rms_eps, k->dh + t * k->d, false, NULL, e) ? -1 : 0;
    }
    if (!rc && c && !quant_grid_kept(o, c->name, k->d, &g))
        rc = measure_head(k, c, &some, e);
    arena_release(&a);
    return rc;
}

static int on_weight(void *ud, enum role role, const float *dy, const float *x, int64_t n, struct err *e)
{
    struct mix *k = ud;
    int64_t rows = role_rows(&k->m->hp, role), cols = role_cols(&k->m->hp, role);
    (void)e;
    memcpy(k->dy[role] + k->at * rows, dy, (size_t)(n * rows) * sizeof *dy);
    if (x_role(role) == role)
        memcpy(k->x[role] + k->at * cols, x, (size_t)(n * cols) * sizeof *x);
    return 0;
}

static int one_block(struct mix *k, int64_t l, struct err *e)
{
    struct bwd_sink sink = { .ud = k, .weight = on_weight };
    const struct layer *layer = &k->m->layers[l];
    for (int64_t i = 0; i < k->n_seq; i++) {
        const float *h = k->h + (l * k->n_tok + k->start[i]) * k->d;
        int64_t n = k->start[i + 1] - k->start[i];
        k->at = k->start[i];
        if (bwd_forward(k->m, layer, &k->b, h, n, e) ||
            bwd_block(k->m, layer, &k->b, h, n, k->dh + k->start[i] * k->d, &sink, e))
            return -1;
    }
    for (int r = 0; r < ROLE_COUNT; r++) {
        struct outputs out = { .dy = k->dy[r] };
        if (measure(k, &k->choice[l * ROLE_COUNT + r], &layer->lin[r].w, k->x[x_role((enum role)r)], &out, k->n_tok, e))
            return -1;
    }
    return 0;
}

static int forward(struct mix *k, struct err *e)
{
    int64_t L = k->m->hp.n_layer, stride = k->n_tok * k->d;
    if (fwd_embed(k->m, k->ids, k->n_tok, k->h, e))
        return -1;
    for (int64_t l = 0; l < L; l++) {
        memcpy(k->h + (l + 1) * stride, k->h + l * stride, (size_t)stride * sizeof *k->h);
        for (int64_t i = 0; i < k->n_seq; i++)
            if (fwd_block(k->m, &k->m->layers[l], &k->b.f, k->h + (l + 1) * stride + k->start[i] * k->d,
                          k->start[i + 1] - k->start[i], e))
                return -1;
        k->done = (double)(l + 1) / 4;
        if (progress(k, e))
            return -1;
    }
    return 0;
}

/* ---- the choice -------------------------------------------------------------------------- */

/* Leaves the types on the lower convex hull of (bytes, loss): each step saves less a byte than the one before. */
static void convex(struct choice *c)
{
    int n = 0;
    for (int i = 0; i < c->n; i++) {
        if (n && c->loss[i] >= c->loss[n - 1])
            continue;
        while (n > 1 && (c->loss[n - 2] - c->loss[n - 1]) * (c->bytes[i] - c->bytes[n - 1]) <
                            (c->loss[n - 1] - c->loss[i]) * (c->bytes[n - 1] - c->bytes[n - 2]))
            n--;
        c->grid[n] = c->grid[i];
        c->bytes[n] = c->bytes[i];
        c->loss[n++] = c->loss[i];
    }
    c->n = n;
}

static void spend(struct choice *c, int64_t n, double budget, double *bytes)
{
    for (;;) {
        int64_t best = -1;
        double gain = 0;
        for (int64_t i = 0; i < n; i++) {
            int at = c[i].at;
            if (at + 1 >= c[i].n || *bytes + c[i].bytes[at + 1] - c[i].bytes[at] > budget)
                continue;
            double g = (c[i].loss[at] - c[i].loss[at + 1]) / (c[i].bytes[at + 1] - c[i].bytes[at]);
            if (g > gain) {
                gain = g;
                best = i;
            }
        }
        if (best < 0)
            return;
        *bytes += c[best].bytes[c[best].at + 1] - c[best].bytes[c[best].at];
        c[best].at++;
    }
}

static int choose(struct mix *k, struct quant_options *o, int64_t n, double budget, uint64_t *bytes, double *loss, struct err *e)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        struct choice *c = &k->choice[i];
        if (!c->fixed)
            convex(c);
        sum += c->bytes[0];
    }
    if (sum > budget)
        return err_set(e, ERR_USAGE, "target: the smallest types take %.0f bytes, %.0f are left for them", sum, budget);
    spend(k->choice, n, budget, &sum);
    *bytes = (uint64_t)sum;
    *loss = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct choice *c = &k->choice[i];
        char text[128];
        if (c->fixed)
            continue;
        *loss += c->loss[c->at] / (double)k->n_tok;
        if (!isfinite(*loss))
            return err_set(e, ERR_NUMERIC, "%s: what its types cost is not a finite number", c->name);
        snprintf(text, sizeof text, "%s=%s", c->name, grid_table[c->grid[c->at]].name);
        if (quant_keep_add(o, text, e))
            return -1;
    }
    return 0;
}

/* ---- the whole ------------------------------------------------------------------------------ */

static int take_tokens(struct mix *k, struct err *e)
{
    const struct calib *c = k->c;
    k->n_seq = c->n < MIX_SEQUENCES ? c->n : MIX_SEQUENCES;
    k->start = arena_alloc(&k->arena, (size_t)(k->n_seq + 1), sizeof *k->start);
    k->ids = arena_alloc(&k->arena, MIX_SEQUENCES * MIX_TOKENS, sizeof *k->ids);
    if (!k->start || !k->ids)
        return err_nomem(e, "tokens", MIX_SEQUENCES * MIX_TOKENS * sizeof *k->ids);
    for (int64_t i = 0; i < k->n_seq; i++) {
        int64_t n = c->start[i + 1] - c->start[i];
        n = n < MIX_TOKENS ? n : MIX_TOKENS;
        memcpy(k->ids + k->n_tok, c->ids + c->start[i], (size_t)n * sizeof *k->ids);
        k->start[i] = k->n_tok;
        k->n_tok += n;
        k->longest = n > k->longest ? n : k->longest;
    }
    k->start[k->n_seq] = k->n_tok;
    return 0;
}

/* one: embeddings and head will be one matrix. */
static int mix_init(struct mix *k, const struct quant_options *o, bool tables, bool one, int64_t *n, struct err *e)
{
    struct model *m = k->m;
    int64_t L = m->hp.n_layer;
    size_t floats = (size_t)(k->n_tok * k->d);
    bool ok = true;
    k->h = arena_alloc(&k->arena, (size_t)(L + 1) * floats, sizeof *k->h);
    k->dh = arena_alloc(&k->arena, floats, sizeof *k->dh);
    k->choice = arena_zalloc(&k->arena, (size_t)(L * ROLE_COUNT + 2), sizeof *k->choice);
    for (int r = 0; r < ROLE_COUNT; r++) {
        k->dy[r] = arena_alloc(&k->arena, (size_t)(k->n_tok * role_rows(&m->hp, (enum role)r)), sizeof(float));
        k->x[r] = x_role((enum role)r) == (enum role)r
                      ? arena_alloc(&k->arena, (size_t)(k->n_tok * role_cols(&m->hp, (enum role)r)), sizeof(float)) : NULL;
        ok = ok && k->dy[r] && (k->x[r] || x_role((enum role)r) != (enum role)r);
    }
    if (!k->h || !k->dh || !k->choice || !ok)
        return err_nomem(e, "measuring types", (size_t)(L + 2) * floats * sizeof *k->h);
    for (int64_t i = 0; i < L * ROLE_COUNT; i++) {
        char name[96];
        matrix_name(name, sizeof name, i, "");
        choice_init(&k->choice[i], o, name, &m->layers[i / ROLE_COUNT].lin[i % ROLE_COUNT].w);
    }
    *n = L * ROLE_COUNT;
    if (tables) {
        struct grid g;
        bool by_head = !one || quant_grid_kept(o, "lm_head", k->d, &g); /* which of the two names counts */
        choice_init(&k->choice[(*n)++], o, by_head ? "lm_head" : "model.embed_tokens", &m->lm_head);
        if (!one)
            choice_init(&k->choice[(*n)++], o, "model.embed_tokens", &m->tok_embd);
    }
    return bwd_init(&k->b, &m->hp, k->longest, e);
}

int quant_mix(struct model *m, struct quant_options *o, const struct calib *c, const struct mix_target *target,
              const struct log *log, uint64_t *bytes, double *loss, struct err *e)
{
    struct mix k = { .m = m, .c = c, .d = m->hp.n_embd, .log = log };
    int64_t n = 0, L = m->hp.n_layer;
    bool one = m->hp.tied && !o->rotate;
    arena_init(&k.arena);
    int rc = take_tokens(&k, e) || mix_init(&k, o, target->tables, one, &n, e) || forward(&k, e) ||
             head(&k, o, target->tables ? &k.choice[L * ROLE_COUNT] : NULL, e) ? -1 : 0;
    for (int64_t l = L - 1; !rc && l >= 0; l--) {
        rc = progress(&k, e) || one_block(&k, l, e) ? -1 : 0;
        k.done++;
    }
    if (!rc && target->tables && !one)
        rc = measure_lookup(&k, &k.choice[L * ROLE_COUNT + 1], e);
    for (int r = 0; !rc && r < ROLE_COUNT; r++)
        scale_role(k.choice + r, L * ROLE_COUNT - r, ROLE_COUNT, k.n_seq);
    rc = rc || choose(&k, o, n, (double)target->bytes, bytes, loss, e) ? -1 : 0;
    bwd_release(&k.b);
    arena_release(&k.arena);
    return rc;
}

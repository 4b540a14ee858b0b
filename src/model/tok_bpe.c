/* tok_bpe: vocabulary maps and the merge loop.
 *
 * A word is a doubly linked list of symbols; candidate merges wait in a binary heap ordered by (rank, position).
 * Stale candidates are recognized when popped. O(n log n), so a whole text may be one word. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_impl.h"

/* ---- maps ------------------------------------------------------------------ */

static uint64_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)s[i]) * 1099511628211u;
    return h ^ h >> 29;
}

static uint32_t table_size(size_t n)
{
    uint32_t size = 16;
    while (size < 2 * n + 2 && size < 1u << 30)
        size *= 2;
    return size;
}

int str_map_build(struct tokenizer *t, struct err *e)
{
    t->map.size = table_size((size_t)t->n);
    t->map.slot = arena_zalloc(&t->arena, t->map.size, sizeof *t->map.slot);
    if (!t->map.slot)
        return err_nomem(e, t->what, t->map.size * sizeof *t->map.slot);
    for (int32_t i = 0; i < t->n; i++) {
        const struct token *k = &t->tokens[i];
        if (!k->raw || (k->kind == TOKEN_UNUSED && k->n == 0))
            continue;
        uint64_t h = hash_bytes(k->raw, k->n);
        while (t->map.slot[h & (t->map.size - 1)]) {
            const struct token *o = &t->tokens[t->map.slot[h & (t->map.size - 1)] - 1];
            if (o->n == k->n && !memcmp(o->raw, k->raw, k->n))
                break; /* the first of equal texts wins */
            h++;
        }
        if (!t->map.slot[h & (t->map.size - 1)])
            t->map.slot[h & (t->map.size - 1)] = i + 1;
    }
    return 0;
}

int32_t str_map_find(const struct tokenizer *t, const char *s, size_t n)
{
    for (uint64_t h = hash_bytes(s, n);; h++) {
        int32_t i = t->map.slot[h & (t->map.size - 1)];
        if (!i)
            return -1;
        const struct token *k = &t->tokens[i - 1];
        if (k->n == n && !memcmp(k->raw, s, n))
            return i - 1;
    }
}

static uint64_t hash_pair(int32_t l, int32_t r)
{
    uint64_t h = ((uint64_t)(uint32_t)l << 32 | (uint32_t)r) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 31;
}

int merge_map_init(struct tokenizer *t, size_t n_merges, struct err *e)
{
    t->merges.size = table_size(n_merges);
    t->merges.slot = arena_alloc(&t->arena, t->merges.size, sizeof *t->merges.slot);
    if (!t->merges.slot)
        return err_nomem(e, t->what, t->merges.size * sizeof *t->merges.slot);
    for (uint32_t i = 0; i < t->merges.size; i++)
        t->merges.slot[i].id = -1;
    return 0;
}

static struct merge *merge_slot(const struct merge_map *m, int32_t l, int32_t r)
{
    uint64_t h = hash_pair(l, r);
    struct merge *s = &m->slot[h & (m->size - 1)];
    while (s->id >= 0 && (s->left != l || s->right != r))
        s = &m->slot[++h & (m->size - 1)];
    return s;
}

void merge_map_add(struct tokenizer *t, int32_t left, int32_t right, int32_t id, uint32_t rank)
{
    struct merge *s = merge_slot(&t->merges, left, right);
    if (s->id < 0)
        *s = (struct merge){ left, right, id, rank };
}

struct scored {
    struct merge m;
    float score;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    if (x->m.id != y->m.id)
        return x->m.id < y->m.id ? -1 : 1;
    if (x->m.left != y->m.left)
        return x->m.left < y->m.left ? -1 : 1;
    return x->m.right < y->m.right ? -1 : x->m.right > y->m.right;
}

#define MAX_PIECE 4096 /* bytes; every cut is looked up, so the work grows with the square */

int merges_from_scores(struct tokenizer *t, const float *score, struct merge **out, size_t *n_out, struct err *e)
{
    struct scored *list = NULL;
    size_t n = 0, cap = 0;
    for (int32_t id = 0; id < t->n; id++) {
        const struct token *k = &t->tokens[id];
        if (k->kind != TOKEN_NORMAL)
            continue;
        if (k->n > MAX_PIECE) {
            mem_free(list);
            return err_set(e, ERR_FORMAT, "%s: token %d has %zu bytes, expected at most %d", t->what, id, k->n, MAX_PIECE);
        }
        for (size_t cut = utf8_len(k->raw, k->n); cut && cut < k->n;) {
            int32_t l = str_map_find(t, k->raw, cut), r = str_map_find(t, k->raw + cut, k->n - cut);
            if (l >= 0 && r >= 0) {
                if (n == cap) {
                    size_t grown = cap ? cap * 2 : 65536;
                    struct scored *p = mem_grow(list, n, grown, sizeof *p);
                    if (!p) {
                        mem_free(list);
                        return err_nomem(e, t->what, grown * sizeof *p);
                    }
                    list = p;
                    cap = grown;
                }
                list[n++] = (struct scored){ { l, r, id, 0 }, score[id] };
            }
            size_t step = utf8_len(k->raw + cut, k->n - cut);
            if (!step)
                break;
            cut += step;
        }
    }
    if (n)
        qsort(list, n, sizeof *list, by_score);
    int rc = merge_map_init(t, n, e);
    struct merge *kept = out && !rc ? arena_alloc(&t->arena, n + 1, sizeof *kept) : NULL;
    if (out && !rc && !kept)
        rc = err_nomem(e, t->what, n * sizeof *kept);
    for (size_t i = 0; !rc && i < n; i++) {
        merge_map_add(t, list[i].m.left, list[i].m.right, list[i].m.id, (uint32_t)i);
        if (kept)
            kept[i] = list[i].m;
    }
    mem_free(list);
    if (out) {
        *out = kept;
        *n_out = n;
    }
    return rc;
}

static int by_rank(const void *a, const void *b)
{
    const struct merge *x = a, *y = b;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

struct merge *merges_by_rank(const struct tokenizer *t, size_t *n)
{
    size_t count = 0;
    struct merge *list = mem_alloc(t->merges.size + 1, sizeof *list);
    for (uint32_t i = 0; list && i < t->merges.size; i++)
        if (t->merges.slot[i].id >= 0)
            list[count++] = t->merges.slot[i];
    if (list)
        qsort(list, count, sizeof *list, by_rank);
    *n = count;
    return list;
}

/* ---- the merge loop -------------------------------------------------------- */

struct node {
    int32_t id, prev, next; /* next/prev: -1 at the ends; id -1: merged away */
};

struct cand {
    uint32_t rank;
    int32_t pos, left, right, id;
};

static bool before(const struct cand *a, const struct cand *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

static void heap_push(struct cand *h, size_t *n, struct cand c)
{
    size_t i = (*n)++;
    while (i && before(&c, &h[(i - 1) / 2])) {
        h[i] = h[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h[i] = c;
}

static struct cand heap_pop(struct cand *h, size_t *n)
{
    struct cand top = h[0], c = h[--*n];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= *n)
            break;
        if (k + 1 < *n && before(&h[k + 1], &h[k]))
            k++;
        if (!before(&h[k], &c))
            break;
        h[i] = h[k];
        i = k;
    }
    h[i] = c;
    return top;
}

int token_list_add(struct token_list *l, int32_t id, struct err *e)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 256;
        int32_t *p = mem_grow(l->ids, l->n, cap, sizeof *p);
        if (!p)
            return err_nomem(e, "tokens", cap * sizeof *p);
        l->ids = p;
        l->cap = cap;
    }
    l->ids[l->n++] = id;
    return 0;
}

void bpe_scratch_release(struct bpe_scratch *s)
{
    mem_free(s->nodes);
    mem_free(s->heap);
    memset(s, 0, sizeof *s);
}

static int scratch_fit(struct bpe_scratch *s, size_t n, struct err *e)
{
    if (n <= s->cap_nodes)
        return 0;
    size_t cap = n < 256 ? 256 : n;
    bpe_scratch_release(s);
    s->nodes = mem_alloc(cap, sizeof(struct node));
    s->heap = mem_alloc(3 * cap, sizeof(struct cand)); /* n at first, two more for each of n merges */
    if (!s->nodes || !s->heap)
        return err_nomem(e, "tokenizer scratch", cap * sizeof(struct cand) * 3);
    s->cap_nodes = cap;
    return 0;
}

/* First symbols of a word into nodes; returns their number. */
static size_t symbols(const struct tokenizer *t, const char *s, size_t n, struct node *v)
{
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        size_t len = t->byte_level ? 1 : utf8_len(s + i, n - i);
        int32_t id;
        if (t->byte_level) {
            id = t->byte_id[(uint8_t)s[i]];
            if (id >= 0 || t->unk >= 0)
                v[k++].id = id >= 0 ? id : t->unk;
            i++;
            continue;
        }
        id = len ? str_map_find(t, s + i, len) : -1;
        if (!len)
            len = 1;
        if (id >= 0) {
            v[k++].id = id;
        } else {
            bool all = t->byte_fallback;
            for (size_t b = 0; b < len; b++)
                all = all && t->byte_id[(uint8_t)s[i + b]] >= 0;
            for (size_t b = 0; all && b < len; b++)
                v[k++].id = t->byte_id[(uint8_t)s[i + b]];
            if (!all && t->unk >= 0 && !(k && v[k - 1].id == t->unk)) /* unknowns fuse */
                v[k++].id = t->unk;
        }
        i += len;
    }
    return k;
}

static void consider(const struct tokenizer *t, const struct node *v, int32_t l, struct cand *heap, size_t *n)
{
    int32_t r = l >= 0 ? v[l].next : -1;
    if (r < 0)
        return;
    const struct merge *m = merge_slot(&t->merges, v[l].id, v[r].id);
    if (m->id >= 0)
        heap_push(heap, n, (struct cand){ m->rank, l, v[l].id, v[r].id, m->id });
}

int bpe_word(const struct tokenizer *t, const char *s, size_t n, struct bpe_scratch *scratch,
             struct token_list *out, struct err *e)
{
    if (t->ignore_merges || n == 1) {
        int32_t id = str_map_find(t, s, n);
        if (id >= 0 && t->tokens[id].kind == TOKEN_NORMAL)
            return token_list_add(out, id, e);
    }
    if (n > INT32_MAX / 4)
        return err_set(e, ERR_UNSUPPORTED, "text of %zu bytes in one piece is too long to tokenize", n);
    if (scratch_fit(scratch, n, e))
        return -1;
    struct node *v = scratch->nodes;
    struct cand *heap = scratch->heap;
    size_t k = symbols(t, s, n, v), heap_n = 0;
    for (size_t i = 0; i < k; i++) {
        v[i].prev = (int32_t)i - 1;
        v[i].next = i + 1 < k ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i + 1 < k; i++)
        consider(t, v, (int32_t)i, heap, &heap_n);
    while (heap_n) {
        struct cand c = heap_pop(heap, &heap_n);
        struct node *l = &v[c.pos];
        if (l->id != c.left || l->next < 0 || v[l->next].id != c.right)
            continue; /* stale */
        struct node *r = &v[l->next];
        l->id = c.id;
        r->id = -1;
        l->next = r->next;
        if (l->next >= 0)
            v[l->next].prev = c.pos;
        consider(t, v, c.pos, heap, &heap_n);
        consider(t, v, l->prev, heap, &heap_n);
    }
    for (int32_t i = k ? 0 : -1; i >= 0; i = v[i].next)
        if (token_list_add(out, v[i].id, e))
            return -1;
    return 0;
}

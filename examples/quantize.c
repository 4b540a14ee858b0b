/* Quantizes a model to 3 bits and measures it before and after:
 *     quantize MODEL OUT TEXT
 * TEXT serves to calibrate and to measure, which a real experiment would keep apart. */
#include <d2quant.h>
#include <stdio.h>

static int say(void *ud, int kind, const char *text, double done, double total)
{
    (void)ud;
    if (kind == D2Q_LOG_PROGRESS)
        fprintf(stderr, "\r%-30s %3.0f %%", text, total > 0 ? 100 * done / total : 100);
    else if (kind != D2Q_LOG_TENSOR)
        fprintf(stderr, "\n%s\n", text);
    return 0; /* anything else cancels */
}

static int measure(d2q_model *m, const char *text, d2q_error *e)
{
    d2q_eval_options o;
    char *json = NULL;
    d2q_eval_options_init(&o);
    o.text = text;
    o.ctx = 256;
    if (d2q_eval(m, &o, &json, e))
        return -1;
    puts(json);
    d2q_free(json);
    return 0;
}

int main(int argc, char **argv)
{
    d2q_error e;
    d2q_quantize_options q;
    char *result = NULL, *written = NULL;
    if (argc != 4)
        return fprintf(stderr, "usage: quantize MODEL OUT TEXT\n"), 2;
    d2q_quantize_options_init(&q);
    q.bits = 3;
    q.group = 64;
    q.calib = argv[3];
    q.nsamples = 32;
    q.seqlen = 256;
    q.log = say;
    d2q_model *m = d2q_open(argv[1], &e);
    int rc = !m || measure(m, argv[3], &e) || d2q_quantize(m, &q, &result, &e) || measure(m, argv[3], &e) ||
             d2q_export(m, "gptq", argv[2], NULL, &written, &e);
    if (rc)
        fprintf(stderr, "%s\n", e.message);
    else
        puts(written);
    d2q_free(result);
    d2q_free(written);
    d2q_close(m);
    return rc ? 1 : 0;
}

// Logits of llama.cpp for given token ids: logits_llama MODEL IDS OUT; IDS: int32 little-endian; OUT: float32 (n, n_vocab).
#include <cstdio>
#include <cstdint>
#include <vector>

#include "llama.h"

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    std::vector<int32_t> ids;
    FILE *f = fopen(argv[2], "rb");
    int32_t id;
    while (f && fread(&id, sizeof id, 1, f) == 1)
        ids.push_back(id);
    if (!f || ids.empty())
        return 2;
    fclose(f);
    llama_log_set([](enum ggml_log_level level, const char *text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR)
            fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model_params mp = llama_model_default_params();
    llama_model *m = llama_model_load_from_file(argv[1], mp);
    if (!m)
        return 1;
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = (uint32_t)ids.size() < 64 ? 64 : (uint32_t)ids.size();
    cp.n_threads = cp.n_threads_batch = 2;
    cp.type_k = cp.type_v = GGML_TYPE_F32; /* the cache is not what is judged */
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context *c = llama_init_from_model(m, cp);
    if (!c)
        return 1;
    llama_batch b = llama_batch_init((int32_t)ids.size(), 0, 1);
    for (size_t i = 0; i < ids.size(); i++) {
        b.token[i] = ids[i];
        b.pos[i] = (llama_pos)i;
        b.n_seq_id[i] = 1;
        b.seq_id[i][0] = 0;
        b.logits[i] = 1;
    }
    b.n_tokens = (int32_t)ids.size();
    if (llama_decode(c, b))
        return 1;
    int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(m));
    f = fopen(argv[3], "wb");
    for (size_t i = 0; f && i < ids.size(); i++)
        fwrite(llama_get_logits_ith(c, (int32_t)i), sizeof(float), (size_t)n_vocab, f);
    return !f || fclose(f);
}

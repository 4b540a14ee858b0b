# d2quant. Targets: all man install uninstall test asan ubsan tsan check-layers check-headers fuzz cover check-deep clean
#   make                     build/d2q, build/libd2q.a, build/libd2q.so
#   make BUILD=dir           objects elsewhere
#   make WERROR=1            warnings are errors;  make V=1  shows the commands
#   make SANITIZE=address    instrumented (what `make asan` does, in build-asan)
# Dependencies come from pkg-config; headers are tracked by the compiler (-MMD).

BUILD   ?= build
PREFIX  ?= /usr/local
CC      ?= cc
VERSION := 0.1.0
SOVERSION := 0

PKGS := openblas lapacke jansson libpcre2-8 libutf8proc nettle
ifneq ($(filter-out clean uninstall check-layers,$(or $(MAKECMDGOALS),all)),)
ifneq ($(shell pkg-config --exists $(PKGS) && echo yes),yes)
$(error missing libraries: pkg-config does not find all of: $(PKGS). On Debian: apt-get install libopenblas-dev liblapacke-dev libjansson-dev libpcre2-dev libutf8proc-dev nettle-dev libcmocka-dev pkg-config, or run ./test.sh)
endif
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS))
PKG_LIBS   := $(shell pkg-config --libs $(PKGS))
endif

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wmissing-prototypes \
        -Wstrict-prototypes -Wvla -Wformat=2
ifdef WERROR
WARN += -Werror
endif
OPT ?= -O2 -g
CFLAGS_ALL := -std=c11 -D_GNU_SOURCE -DD2Q_VERSION='"$(VERSION)"' -Isrc -Iinclude $(WARN) $(OPT) \
              -fPIC -fvisibility=hidden -ffp-contract=off -pthread -MMD -MP $(PKG_CFLAGS) $(CFLAGS)
# Commands are shown with V=1, else a word and the target.
Q := $(if $(V),,@)
say = $(Q)$(if $(V),,echo '  $(1)  $@' && )
LDLIBS_ALL := $(PKG_LIBS) -pthread -lm $(LDLIBS)
ifdef SANITIZE
CFLAGS_ALL += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all
LDFLAGS += -fsanitize=$(SANITIZE)
endif

# Instruction sets: only files named *_<isa>.c get flags beyond the baseline.
ARCH := $(shell $(CC) -dumpmachine | cut -d- -f1)
ISA_FLAGS_generic := -O3 -Wno-psabi
ISA_FLAGS_avx2    := -O3 -Wno-psabi -mavx2 -mfma -mf16c -ffp-contract=fast
ISA_FLAGS_avx512  := -O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c \
                     -mprefer-vector-width=512 -ffp-contract=fast
ISA_FLAGS_amx     = $(ISA_FLAGS_avx512) -mamx-tile -mamx-bf16
ISA_FLAGS_neon    := -O3 -Wno-psabi -ffp-contract=fast
ISA_SKIP := $(if $(filter x86_64,$(ARCH)),neon,$(if $(filter aarch64,$(ARCH)),avx2 avx512 amx,avx2 avx512 amx neon))

SRC := $(filter-out $(foreach i,$(ISA_SKIP),%_$(i).c),$(shell find src -name '*.c' | LC_ALL=C sort))
CLI_SRC := $(filter src/cli/%,$(SRC))
LIB_SRC := $(filter-out src/cli/%,$(SRC))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(CLI_SRC:%.c=$(BUILD)/%.o)
TEST_SRC := $(wildcard tests/test_*.c)
TEST_BIN := $(TEST_SRC:tests/%.c=$(BUILD)/tests/%)
HELPERS := $(filter-out $(TEST_SRC),$(wildcard tests/*.c))
HELPER_OBJ := $(HELPERS:%.c=$(BUILD)/%.o)

.SECONDARY:
.PHONY: all man lib tests test asan ubsan tsan fuzz cover check-deep check-layers check-headers install uninstall clean
all: $(if $(CLI_SRC),$(BUILD)/d2q) lib

# Only d2q_ symbols leave either library.
lib: $(BUILD)/libd2q.a $(BUILD)/libd2q.so

isa_of = $(strip $(foreach i,generic avx2 avx512 amx neon,$(if $(filter %_$(i).c,$(1)),$(ISA_FLAGS_$(i)))))
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(CFLAGS_ALL) $(call isa_of,$<) -c $< -o $@

# All library objects, names intact: what the tests link.
$(BUILD)/libd2q_internal.a: $(LIB_OBJ)
	$(call say,AR)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/libd2q.o: $(LIB_OBJ)
	$(call say,LD)$(LD) -r -o $@ $^
	$(Q)objcopy -w --keep-global-symbol='d2q_*' $@
$(BUILD)/libd2q.a: $(BUILD)/libd2q.o
	$(call say,AR)rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/libd2q.so: $(LIB_OBJ) src/api/libd2q.map
	$(call say,LD)$(CC) -shared -Wl,-soname,libd2q.so.$(SOVERSION) -Wl,--version-script=src/api/libd2q.map \
	      $(LDFLAGS) -o $@ $(LIB_OBJ) $(LDLIBS_ALL)

$(BUILD)/d2q: $(CLI_OBJ) $(BUILD)/libd2q_internal.a
	$(call say,LD)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL)

# Not instrumented: it comes before a sanitizer's runtime.
$(BUILD)/tests/faults.so: tests/preload/faults.c
	@mkdir -p $(@D)
	$(call say,LD)$(CC) -std=c11 -D_GNU_SOURCE $(filter-out -Wpedantic -Wmissing-prototypes,$(WARN)) -O1 -g -fPIC -shared -o $@ $< -ldl
tests: $(TEST_BIN) $(BUILD)/tests/faults.so
$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(HELPER_OBJ) $(BUILD)/libd2q_internal.a
	$(call say,LD)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS_ALL) -lcmocka

# ---- hostile files: fuzz/README.md ----
# base/file's input functions are replaced by fuzz/vfs.c, and what would run a model by nothing.
comma := ,
FUZZ_WRAP := $(addprefix -Wl$(comma)--wrap=,file_map_open file_map_release file_map_forget file_read file_head file_exists \
               file_is_dir file_inside opendir choice_score)
FUZZ_SRC := fuzz/vfs.c fuzz/models.c fuzz/texts.c
FUZZ_OBJ := $(FUZZ_SRC:%.c=$(BUILD)/%.o)
FUZZ_TARGETS := $(shell sed -n 's/^TARGET.\([a-z]*\),.*/\1/p' fuzz/targets.def)
FUZZ_CC ?= clang-14
# Replays what fuzz/corpus holds, findings among it.
$(BUILD)/tests/test_corpus: $(BUILD)/tests/test_corpus.o $(FUZZ_OBJ) $(BUILD)/libd2q_internal.a
	$(call say,LD)$(CC) $(LDFLAGS) $(FUZZ_WRAP) -o $@ $^ $(LDLIBS_ALL) -lcmocka
$(BUILD)/tests/test_corpus.o $(FUZZ_OBJ): CFLAGS_ALL += -Ifuzz
fuzz:
	$(MAKE) BUILD=build-fuzz CC=$(FUZZ_CC) OPT="-O1 -g" WARN=-w ISA_FLAGS_avx512="$(ISA_FLAGS_avx512) -mavx512vnni -O1 -fno-sanitize=all" LDFLAGS="-fsanitize=address,undefined" \
	  CFLAGS="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -DD2Q_EXACT_ENDS" \
	  $(FUZZ_TARGETS:%=build-fuzz/fuzz_%)
$(BUILD)/fuzz_%: fuzz/libfuzzer.c $(FUZZ_OBJ) $(BUILD)/libd2q_internal.a
	$(call say,LD)$(CC) $(CFLAGS_ALL) -Ifuzz -DFUZZ_TARGET=fuzz_$* -fsanitize=fuzzer $(LDFLAGS) $(FUZZ_WRAP) -Wl,--wrap=pcre2_jit_compile_8 \
	  -MF $@.d -o $@ fuzz/libfuzzer.c $(FUZZ_OBJ) $(BUILD)/libd2q_internal.a $(LDLIBS_ALL)

test: all tests
	tests/run $(BUILD)
asan:
	$(MAKE) BUILD=build-asan SANITIZE=address OPT="-O1 -g" test
ubsan:
	$(MAKE) BUILD=build-ubsan SANITIZE=undefined OPT="-O1 -g" test
tsan:
	$(MAKE) BUILD=build-tsan SANITIZE=thread OPT="-O1 -g" test
# Lines of src/ that the tests reach. What is not built here is not counted: kernels for another machine's instruction set (*_neon.c;
# tools/packed_neon.sh runs the packed ones under an emulator).
cover:
	@command -v gcovr >/dev/null || { echo "gcovr is missing: pip install gcovr"; exit 1; }
	$(MAKE) BUILD=build-cover OPT="-O1 -g" CFLAGS=--coverage LDFLAGS=--coverage all tests
	find build-cover -name '*.gcda' -delete
	tests/run build-cover
	gcovr -r . --object-directory build-cover --filter src/ --gcov-ignore-parse-errors --txt build-cover/coverage.txt
	@tail -n 2 build-cover/coverage.txt; echo "by file: build-cover/coverage.txt"
check-deep:
	tools/check_deep.sh
check-layers:
	tests/check_layers.sh
# Each header compiles by itself (those without an include guard are bodies for several files, not headers).
check-headers:
	@for h in $$(grep -rl --include='*.h' '^#ifndef D2Q.*_H$$' include src | LC_ALL=C sort); do \
	  printf '#include "%s"\ntypedef int d2q_not_empty;\n' "$${h#*/}" | \
	  $(CC) $(filter-out -MMD -MP,$(CFLAGS_ALL)) -Werror -fsyntax-only -x c - || { echo "$$h does not compile alone"; exit 1; }; \
	done

# Pages and completion come from the program's own tables.
COMMANDS := $(shell sed -n 's/^COMMAND.\([a-z]*\),.*/\1/p' src/cli/commands.def)
man: $(BUILD)/man/d2q.1 $(COMMANDS:%=$(BUILD)/man/d2q-%.1)
$(BUILD)/man/d2q.1: $(BUILD)/d2q
	@mkdir -p $(@D)
	$(call say,MAN)$(BUILD)/d2q --man > $@
$(BUILD)/man/d2q-%.1: $(BUILD)/d2q
	@mkdir -p $(@D)
	$(call say,MAN)$(BUILD)/d2q --man $* > $@

SHARE = $(DESTDIR)$(PREFIX)/share
BASH_TO = $(SHARE)/bash-completion/completions
ZSH_TO  = $(SHARE)/zsh/site-functions
FISH_TO = $(SHARE)/fish/vendor_completions.d
install: all man
	install -d $(SHARE)/man/man1 $(BASH_TO) $(ZSH_TO) $(FISH_TO)
	install -m 644 $(BUILD)/man/*.1 $(SHARE)/man/man1
	$(BUILD)/d2q --completion bash > $(BASH_TO)/d2q
	$(BUILD)/d2q --completion zsh > $(ZSH_TO)/_d2q
	$(BUILD)/d2q --completion fish > $(FISH_TO)/d2q.fish
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include
	install $(BUILD)/d2q $(DESTDIR)$(PREFIX)/bin/d2q
	install -m 644 include/d2quant.h $(DESTDIR)$(PREFIX)/include/d2quant.h
	install -m 644 $(BUILD)/libd2q.a $(DESTDIR)$(PREFIX)/lib/libd2q.a
	install $(BUILD)/libd2q.so $(DESTDIR)$(PREFIX)/lib/libd2q.so.$(SOVERSION)
	ln -sf libd2q.so.$(SOVERSION) $(DESTDIR)$(PREFIX)/lib/libd2q.so
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: d2quant' 'Description: D2Quant weight quantizer' \
	  'Version: $(VERSION)' 'Libs: -L$${prefix}/lib -ld2q' \
	  'Libs.private: $(PKG_LIBS) -pthread -lm' 'Cflags: -I$${prefix}/include' \
	  > $(DESTDIR)$(PREFIX)/lib/pkgconfig/d2quant.pc
uninstall:
	rm -f $(SHARE)/man/man1/d2q.1 $(COMMANDS:%=$(SHARE)/man/man1/d2q-%.1) $(BASH_TO)/d2q $(ZSH_TO)/_d2q $(FISH_TO)/d2q.fish
	rm -f $(DESTDIR)$(PREFIX)/bin/d2q $(DESTDIR)$(PREFIX)/include/d2quant.h \
	  $(DESTDIR)$(PREFIX)/lib/libd2q.a $(DESTDIR)$(PREFIX)/lib/libd2q.so $(DESTDIR)$(PREFIX)/lib/libd2q.so.$(SOVERSION) \
	  $(DESTDIR)$(PREFIX)/lib/pkgconfig/d2quant.pc
clean:
	rm -rf $(BUILD) build-asan build-ubsan build-tsan build-fuzz build-cover

-include $(FUZZ_OBJ:.o=.d) $(LIB_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(TEST_BIN:=.d) $(HELPER_OBJ:.o=.d)

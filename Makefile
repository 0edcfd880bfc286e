# UltraCompress. `make help` lists the targets; every one works from a fresh clone.
SHELL := /bin/bash
.DEFAULT_GOAL := help

MODEL ?= examples/tiny-stories
BIN := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release
UC := $(BIN)/uc
BPW ?= 5.0
# Where `make install` puts the program; DESTDIR is put before it, for packagers.
PREFIX ?= /usr/local
# Options that are passed only if their variable is set.
SET_ARGS := $(foreach s,$(SET),--set $(s)) $(if $(THREADS),--threads $(THREADS)) $(if $(FORCE),--force)
RUN_ARGS := $(if $(RUN),--run $(RUN)) $(if $(OUT),--out $(OUT)) $(foreach f,$(CALIBRATION),--calibration $(f)) \
            $(foreach f,$(EVALUATION),--evaluation $(f)) $(SET_ARGS) $(if $(CUDA),--set model.device=cuda)
# The API version of the CUDA toolkit whose NVRTC is loaded at run time: 12080 for 12.8, 13000 for 13.0.
export CUDARC_CUDA_VERSION ?= 13000
WITH_CUDA := --features uc-model/cuda
# cargo-nextest runs the tests in parallel processes; plain cargo test is the fallback.
TEST := $(shell command -v cargo-nextest >/dev/null 2>&1 && echo "cargo nextest run" || echo "cargo test")

.PHONY: help
help: ## list the targets
	@echo "make run                        compress, pack, verify and evaluate the embedded tiny model"
	@echo "make run MODEL=DIR|OWNER/NAME[@REVISION] [CALIBRATION=FILE] [EVALUATION=FILE] [BPW=5.0] [RUN=DIR] [OUT=PACK] [SET='evaluation.windows=0 …'] [THREADS=N] [FORCE=1] [CUDA=1]"
	@echo "make resume RUN=DIR [SET=…] [THREADS=N] [FORCE=1]   continue an interrupted run"
	@echo "make stage STAGE=quantize LAYER=3 RUN=DIR   run one stage for one layer, with full logs"
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 20
	@echo
	@echo "The bench targets write their receipts to docs/benchmarks."

.PHONY: setup
setup: ## build every program (release; CUDA=1 for an NVIDIA GPU)
	cargo build --release --locked --workspace --bins $(if $(CUDA),$(WITH_CUDA))

.PHONY: run
run: setup ## the main job: compress MODEL to a pack, verify and evaluate it
	$(UC) compress $(MODEL) --bpw $(BPW) $(RUN_ARGS)

.PHONY: resume
resume: setup ## continue the run in RUN=DIR (SET, THREADS and FORCE as for run)
	$(UC) resume $(RUN) $(SET_ARGS)

.PHONY: stage
stage: setup ## run one STAGE of RUN=DIR for one LAYER, alone; its deleted inputs are made first
	$(UC) stage $(STAGE) --run $(RUN) $(if $(LAYER),--layer $(LAYER)) --with-inputs -v

.PHONY: upload
upload: setup ## upload the pack of RUN=DIR to REPO=OWNER/NAME on the Hub, verified (DELETE_UPLOADED=1 deletes uploaded layers locally)
	$(UC) upload $(RUN) --repo $(REPO) $(if $(DELETE_UPLOADED),--delete-uploaded)

.PHONY: test
test: ## build everything and run all tests except the slow ones
	cargo build --release --locked --workspace --bins
	$(TEST) --release --locked --workspace

.PHONY: test-full
test-full: test ## run the slow tests too (random kills, full disks, larger models)
	$(TEST) --release --locked --workspace $(if $(findstring nextest,$(TEST)),--profile full --run-ignored ignored-only,-- --ignored)

.PHONY: lint
lint: ## check formatting, run clippy with warnings denied
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

.PHONY: deny
deny: ## check licences, bans and sources of the dependencies, and advisories if their database can be had (needs cargo-deny)
	cargo deny check bans licenses sources
	@if cargo deny fetch db; then cargo deny check advisories; \
	else echo "advisories were not checked: their database could not be fetched"; fi

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZ_SECONDS=60 (needs a nightly toolchain and cargo-fuzz)
	for target in layer non_layer manifest packed; do \
	  mkdir -p fuzz/target/corpus/$$target && \
	  cargo +nightly fuzz run --fuzz-dir fuzz --features libfuzzer $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	    -max_total_time=$(or $(FUZZ_SECONDS),60) -rss_limit_mb=512 || exit 1; \
	done

.PHONY: hub-check
hub-check: ## run the official Hub client against the tests' fake Hub (needs python3 with huggingface_hub)
	cargo build --release --locked -p uc-fake-hub
	python3 tests/hub/with_huggingface_hub.py $(BIN)/fake-hub

.PHONY: bench
bench: setup ## write benchmark receipts to docs/benchmarks (BENCH_MODEL=DIR CALIBRATION=… EVALUATION=…)
	BENCH_MODEL="$(BENCH_MODEL)" CALIBRATION="$(CALIBRATION)" EVALUATION="$(EVALUATION)" SET="$(SET)" tests/benchmark/run.sh

.PHONY: bench-speed
bench-speed: ## measure the speed of the codec (needs python3; SPEED_ARGS=--suffix=… for another machine)
	python3 tests/benchmark/speed.py $(SPEED_ARGS)

.PHONY: bench-kernels
bench-kernels: ## measure the products of the runtime beside the rate at which memory is read (needs python3)
	python3 tests/benchmark/speed.py kernels $(SPEED_ARGS)

.PHONY: bench-passes
bench-passes: setup ## measure what the passes over BENCH_MODEL spend their time on, beside a large matrix product (CALIBRATION=FILE EVALUATION=FILE; needs python3)
	cargo build --release --locked -p uc-model --example product_speed
	python3 tests/benchmark/passes.py --model $(BENCH_MODEL) --calibration $(CALIBRATION) --evaluation $(EVALUATION)

.PHONY: bench-wide
bench-wide: setup ## run one 405B layer and one Qwen3-235B layer through every stage: memory and time of each (hours; needs python3 with numpy; WIDE_ARGS=… as tests/benchmark/wide_layers.py says)
	$(PYTHON) tests/benchmark/wide_layers.py $(WIDE_ARGS)

.PHONY: bench-forecast
bench-forecast: setup ## make the tables of docs/forecasts.md from the configurations in UC_MODELS=FOLDER (needs python3)
	python3 tests/benchmark/forecasts.py --models $(UC_MODELS)

.PHONY: bench-storm
bench-storm: setup ## ten minutes of 64 clients on a server: no answer changes, nothing leaks
	UC_STORM_RECEIPT="$(CURDIR)/docs/benchmarks/serve-storm.json" cargo test --release --locked --workspace --test serve_storm -- --ignored

.PHONY: bench-serving
bench-serving: setup ## measure uc serve under load beside llama-server: PACK, GGUF=FILE of the same model, TEXT=FILE of prompts (needs python3, and LLAMA_SERVER, the program of llama.cpp; SERVING_ARGS=… as tests/serve/load.py says)
	python3 tests/serve/load.py --uc $(UC) --pack $(PACK) --llama-server $(LLAMA_SERVER) --gguf $(GGUF) --text $(TEXT) $(SERVING_ARGS)

.PHONY: bench-overlay
bench-overlay: ## measure what a low-rank overlay would gain at large widths
	cargo run --release --locked -p uc-examples --example overlay_width -- 1024 2048 4096 8192 > docs/benchmarks/overlay-width.json

.PHONY: bench-trellis
bench-trellis: ## measure the error of convolutional codes for the trellis
	cargo run --release --locked -p uc-examples --example trellis_codes > docs/benchmarks/trellis-codes.json

.PHONY: bench-families
bench-families: setup ## run a small model of every family through the pipeline (needs python3)
	python3 tests/benchmark/families.py

.PHONY: bench-allocation
bench-allocation: setup ## compare the allocation modes on dead, sparse and low-entropy weights (needs python3 with numpy)
	python3 tests/benchmark/allocation.py $(UC)

.PHONY: bench-models
bench-models: setup ## make the tables of docs/models.md; with UC_MODELS=FOLDER of configurations, the plans too (needs python3)
	python3 tests/benchmark/models_table.py $(if $(UC_MODELS),--models $(UC_MODELS))

.PHONY: bench-rates
bench-rates: setup ## measure and plot the rate curve of BENCH_MODEL (needs python3 with matplotlib)
	python3 tests/benchmark/rates.py --model $(BENCH_MODEL) --calibration $(CALIBRATION) --text $(EVALUATION) $(if $(SET),--set $(SET))

.PHONY: bench-peers
bench-peers: setup ## measure other codecs on BENCH_MODEL, with the windows of the finished RUN (needs LLAMA_QUANTIZE and the python3 packages that tests/benchmark/peers.py lists; WINDOWS=0 takes the whole text)
	cargo build --release --locked -p uc-examples --example exact_pack
	python3 tests/benchmark/peers.py --model $(BENCH_MODEL) --run $(RUN) --text $(EVALUATION) --llama-quantize $(LLAMA_QUANTIZE) $(if $(WINDOWS),--windows $(WINDOWS))

.PHONY: bench-exports
bench-exports: setup ## measure what exports add to the error of a pack: that of the embedded model, and PACK with EVALUATION (needs python3)
	python3 tests/benchmark/exports.py
	$(if $(PACK),python3 tests/benchmark/exports.py --pack $(PACK) --text $(EVALUATION) $(if $(WINDOWS),--windows $(WINDOWS)))

.PHONY: bench-runtime
bench-runtime: setup ## measure uc bench beside llama.cpp on PACK and on packs of 1 B parameters with its statistics (needs python3, and LLAMA_BENCH and LLAMA_QUANTIZE, the programs of llama.cpp; SCRATCH=DIR keeps files, RUNTIME_ARGS=… as tests/benchmark/runtime.py says)
	cargo build --release --locked -p uc-examples --example synthetic_pack
	python3 tests/benchmark/runtime.py --pack $(PACK) $(if $(SCRATCH),--scratch $(SCRATCH)) $(RUNTIME_ARGS)

.PHONY: bench-runtime-accuracy
bench-runtime-accuracy: setup ## compare the runtime with the evaluation of the finished RUN, and its greedy text on EVALUATION with transformers (needs python3 with torch, transformers and safetensors)
	cargo build --release --locked -p uc-examples --example runtime_accuracy
	python3 tests/benchmark/runtime_accuracy.py --run $(RUN) $(if $(PACK),--pack $(PACK)) --text $(EVALUATION)

.PHONY: gpu-check
gpu-check: ## type-check the CUDA backend (needs no GPU or toolkit)
	cargo check --release --locked -p uc-model -p teacher-cache -p evaluator --all-targets $(WITH_CUDA)

.PHONY: gpu-test
gpu-test: ## run the tests with the CUDA backend (needs an NVIDIA GPU, its driver and the toolkit's NVRTC and headers)
	$(TEST) --release --locked -p uc-model -p teacher-cache -p evaluator $(WITH_CUDA)

# All programs are in one folder, where `uc` looks for its stage programs; bin/uc is a link to it.
PROGRAMS := uc shard-loader teacher-cache quantize overlay-fit pack-writer evaluator hub-upload
ROOT := $(DESTDIR)$(PREFIX)
SHARE := $(ROOT)/share

.PHONY: install
install: setup install-files ## install the programs, completions and manual pages below PREFIX=/usr/local

.PHONY: install-files
install-files:
	install -d $(ROOT)/bin $(ROOT)/libexec/ultracompress $(SHARE)/man/man1 $(SHARE)/bash-completion/completions \
	  $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d $(SHARE)/ultracompress $(SHARE)/doc/ultracompress/docs
	install $(PROGRAMS:%=$(BIN)/%) $(ROOT)/libexec/ultracompress
	ln -sf ../libexec/ultracompress/uc $(ROOT)/bin/uc
	$(UC) -q man --out $(SHARE)/man/man1
	$(UC) completions bash > $(SHARE)/bash-completion/completions/uc
	$(UC) completions zsh > $(SHARE)/zsh/site-functions/_uc
	$(UC) completions fish > $(SHARE)/fish/vendor_completions.d/uc.fish
	install -m 644 tests/independent/read_pack.py $(SHARE)/ultracompress
	install -m 644 README.md LICENSE CHANGELOG.md $(SHARE)/doc/ultracompress
	install -m 644 docs/*.md docs/bench-schema.json $(SHARE)/doc/ultracompress/docs

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')
DIST = ultracompress-$(VERSION)-$(TRIPLE)
DIST_ROOT ?= target/dist
DIST_FOLDER = $(DIST_ROOT)/$(DIST)

.PHONY: dist
dist: setup dist-files ## make the release archive target/dist/ultracompress-VERSION-TRIPLE.tar.gz, which runs anywhere

.PHONY: dist-files
dist-files:
	rm -rf $(DIST_FOLDER)
	$(MAKE) --no-print-directory install-files PREFIX=$(abspath $(DIST_FOLDER)) DESTDIR=
	cp tests/independent/read_pack.py README.md LICENSE CHANGELOG.md $(DIST_FOLDER)
	mkdir -p $(DIST_FOLDER)/docs $(DIST_FOLDER)/examples
	cp docs/*.md docs/bench-schema.json $(DIST_FOLDER)/docs
	cp -r examples/tiny-stories $(DIST_FOLDER)/examples
	tar --create --sort=name --owner=0 --group=0 --numeric-owner --directory=$(DIST_ROOT) $(DIST) | gzip -n9 > $(DIST_FOLDER).tar.gz
	@echo $(DIST_FOLDER).tar.gz

WHEELS ?= target/wheels
PYTHON ?= python3
# What the wheel carries besides the extension module.
LIBEXEC := common/python/python/ucpack/libexec

.PHONY: wheel
wheel: setup wheel-files ## build the Python package with all programs: target/wheels/ucpack-VERSION-….whl (needs python3 and PyPI for maturin)

.PHONY: wheel-files
wheel-files:
	$(PYTHON) -m venv target/maturin
	target/maturin/bin/pip install --quiet --disable-pip-version-check maturin==1.16.0
	rm -rf $(LIBEXEC)
	install -d $(LIBEXEC)
	install --strip $(PROGRAMS:%=$(BIN)/%) $(LIBEXEC)
	install -m 644 tests/independent/read_pack.py LICENSE $(LIBEXEC)
	target/maturin/bin/maturin build --release --locked --manifest-path common/python/Cargo.toml --out $(WHEELS) \
	  --compatibility $$($(PYTHON) common/python/glibc_tag.py $(PROGRAMS:%=$(LIBEXEC)/%))

.PHONY: clean
clean: ## remove build output and the default run directories
	cargo clean
	rm -rf runs $(LIBEXEC)

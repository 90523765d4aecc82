# Two commands on a fresh machine:  make demo   and   make test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_OUT ?= demo-out
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
AS_ROOT := $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: browser demo test lint format typecheck clean

demo: $(VENV)/.installed
	$(BIN)/attnctl generate --recipe examples/demo.yaml --count 8 --compare \
		--heatmaps "circle,square" --out $(DEMO_OUT)
	@echo "The comparison sheet and the pictures are in $(CURDIR)/$(DEMO_OUT)"

test: $(VENV)/.installed-dev browser
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

# The tests of the studio drive a real browser; ATTNCTL_NO_BROWSER=1 leaves them out.
browser:
	@test -n "$$ATTNCTL_NO_BROWSER" || command -v chromium >/dev/null || \
		command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ $(AS_ROOT) apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		$(AS_ROOT) apt-get install -y -qq --no-install-recommends chromium; } || \
		{ echo "Chromium is missing and could not be installed; install it, or set ATTNCTL_NO_BROWSER=1"; exit 2; }

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-dev
	$(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another one: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(DEMO_OUT) build dist *.egg-info .pytest_cache .ruff_cache

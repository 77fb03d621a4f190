# Both do everything on a fresh machine. Without make, the same by hand:
#   python3 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e '.[test]'
#   .venv/bin/python -m lensml book --size smoke        .venv/bin/python -m pytest
PYTHON ?= python3
SIZE ?= smoke
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

NOTED := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version
STRIP := $(RUN) -m nbstripout --keep-id --extra-keys '$(NOTED:%=metadata.language_info.%)'

.PHONY: book test campaign bench clean notebook-filter
.DELETE_ON_ERROR:

book: $(INSTALLED)
	$(RUN) -m lensml book --size $(SIZE)

# Files of tests side by side, one process a core; `.venv/bin/python -m pytest tests/ROOM` runs a few.
test: $(INSTALLED)
	$(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Hostile inputs in great number, an hour or two; what was tried goes to data/results/campaigns.json.
campaign: $(INSTALLED)
	LENSML_CAMPAIGN=$(or $(INPUTS),20000) $(RUN) -m pytest tests/campaigns

# Some minutes; `make bench FULL=1` takes longer and keeps its numbers under data/results/benchmarks.
bench: $(INSTALLED)
	$(RUN) benchmarks $(if $(FULL),--full)

# Remade only when what is to be installed has changed; the stamp is written last.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "installing what constraints.txt lists into $(VENV); this takes a few minutes, once"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(MAKE) --no-print-directory notebook-filter
	@touch $@

# Git compares and commits notebooks without outputs, counts and what Lab notes of its kernel;
# where there is no environment they pass as they are. For a checkout of this repository alone.
notebook-filter:
	@test ! -e .git || git config filter.nbstripout.clean \
	  "if test -x $(RUN); then $(STRIP); else cat; fi" || echo "no filter for notebooks" >&2

# What a run makes; results, figures and the environment stay.
clean:
	rm -rf _build

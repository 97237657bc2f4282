# What people type: `make demo`, `make test`, `make install`. Variables: PYTHON, PREFIX, DESTDIR.

# Debian's own Python: one from elsewhere that comes first on the PATH may lack a module or be too old.
PYTHON ?= /usr/bin/python3
PREFIX ?= /usr/local
BASH_COMPLETION ?= $(PREFIX)/share/bash-completion/completions
ZSH_COMPLETION ?= $(PREFIX)/share/zsh/site-functions

VENV := .venv
# Named after the Python, so that another one (an upgrade of Debian) makes the folder anew.
STAMP := $(VENV)/.stamp-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PACKAGES := src/ssi/host/packages.txt
PYTEST := $(VENV)/bin/python -P -m pytest
# Clusters wait more than they compute: two at once on two processors take little longer than one.
WORKERS ?= 2
LINKS := ssi-start ssi-add ssi-rm ssi-stop ssi-ls
LIBRARY := $(PREFIX)/lib/ssi
# -P keeps the folder one happens to be in off the module path.
PIP := $(VENV)/bin/python -P -m pip --disable-pip-version-check --quiet

.NOTPARALLEL:
.PHONY: setup packages demo check check-node check-cluster check-slow test install uninstall clean help

help:
	@echo 'make demo           set up, build, and show a cluster of three nodes at work'
	@echo 'make setup          install the Debian and Python packages that are missing'
	@echo 'make check          linters and unit tests: seconds'
	@echo 'make check-node     tests that boot one virtual node'
	@echo 'make check-cluster  tests that boot several'
	@echo 'make check-slow     tests with more nodes than processors like'
	@echo 'make test           everything, from setting up to the last test'
	@echo 'make install        to PREFIX ($(PREFIX)); make uninstall removes it again'
	@echo 'make clean          remove what setting up and testing left in this folder'

# -- setting up --------------------------------------------------------------------------------

setup: packages $(STAMP)

packages:
	@tools/install-packages $(PACKAGES)

$(STAMP): pyproject.toml
	@echo 'Installing Python packages into $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is too old: 3.11 is needed")'
	@$(VENV)/bin/python -P -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@$(PYTHON) tools/requirements.py pyproject.toml dev >$(VENV)/requirements.txt
	@$(PIP) install --requirement $(VENV)/requirements.txt
	@touch $@

# -- showing -----------------------------------------------------------------------------------

demo: setup
	bin/ssi build all
	$(VENV)/bin/python -P examples/demo.py

# -- testing -----------------------------------------------------------------------------------

check: $(STAMP)
	$(PYTEST) tests/lint tests/unit

check-node: $(STAMP)
	$(PYTEST) -m node tests

check-cluster: $(STAMP)
	$(PYTEST) -m 'cluster and not slow' tests

# Many kernels on few processors.
check-slow: $(STAMP)
	$(PYTEST) -m slow tests

test: setup
	bin/ssi doctor || true
	$(PYTEST) tests/lint tests/unit tests/install
	bin/ssi build all
	$(VENV)/bin/python -P tools/test_clusters.py $(WORKERS)

# -- installing --------------------------------------------------------------------------------

# The installation is laid out like the checkout and needs nothing of it. As root is usual here, and
# the checkout is a user's: nothing is written to it.
install: export PYTHONDONTWRITEBYTECODE = 1
install: $(STAMP)
	tools/install $(PYTHON) '$(DESTDIR)' '$(LIBRARY)'
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(BASH_COMPLETION)' '$(DESTDIR)$(ZSH_COMPLETION)'
	for name in ssi $(LINKS); do ln -sfn ../lib/ssi/bin/ssi '$(DESTDIR)$(PREFIX)/bin/'$$name; done
	bin/ssi completion bash >'$(DESTDIR)$(BASH_COMPLETION)/ssi'
	for name in $(LINKS); do ln -sfn ssi '$(DESTDIR)$(BASH_COMPLETION)/'$$name; done
	bin/ssi completion zsh >'$(DESTDIR)$(ZSH_COMPLETION)/_ssi'
	chmod 644 '$(DESTDIR)$(BASH_COMPLETION)/ssi' '$(DESTDIR)$(ZSH_COMPLETION)/_ssi'

uninstall:
	for name in ssi $(LINKS); do rm -f '$(DESTDIR)$(PREFIX)/bin/'$$name '$(DESTDIR)$(BASH_COMPLETION)/'$$name; done
	rm -f '$(DESTDIR)$(ZSH_COMPLETION)/_ssi'
	rm -rf '$(DESTDIR)$(LIBRARY)'

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

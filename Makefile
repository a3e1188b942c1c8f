# Everything a developer or CI does.  "make demo" and "make test" set up what they need themselves.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DIST := dist
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)

# Debian packages, each with what it is for.
DEMO_PACKAGES := e2fsprogs fdisk
TEST_PACKAGES := $(DEMO_PACKAGES) \
	mount \
	git \
	partclone xfsprogs btrfs-progs ntfs-3g dosfstools mtools \
	openssh-server openssh-client fish mksh tcsh zsh \
	nbdkit libnbd-bin qemu-utils \
	libxxhash0 libzstd1 \
	iproute2 \
	user-mode-linux dmsetup kmod lvm2 mdadm cryptsetup-bin \
	cpio libarchive-tools bzip2 xz-utils zstd lz4 lzop liblz4-1 liblzo2-2 \
	libvirt-clients libvirt0 libxml2-utils libxen-dev python3-yaml \
	dialog tmux \
	pandoc groff-base
# Debian guests are made with these, and booted: their kernel and GRUB are downloaded once.  What the
# live CD needs is more than livecd/build installs: it is booted, too.
E2E_PACKAGES := mmdebstrap debian-archive-keyring zstd \
	e2fsprogs fdisk dosfstools lvm2 dmsetup \
	mdadm btrfs-progs cryptsetup-bin \
	user-mode-linux kmod \
	qemu-system-x86 qemu-utils ovmf \
	libxxhash0 libzstd1
LIVECD_PACKAGES := mmdebstrap squashfs-tools xorriso grub-common grub-pc-bin grub-efi-amd64-bin \
	grub-efi-amd64-signed shim-signed mtools dosfstools python3-pip python3-setuptools \
	python3-wheel mount openssh-client
# What make bench measures against; bdsync and blocksync-fast are in no distribution: when they are
# on PATH they take part.
BENCH_PACKAGES := rsync netcat-openbsd zstd nbdkit libnbd-bin qemu-utils \
	openssh-server openssh-client coreutils libxxhash0 libzstd1

.PHONY: help demo test e2e e2e-all torture bench lint pyz man lock clean \
	demo-packages test-packages e2e-packages bench-packages

help:
	@echo 'make demo    replicate a small disk over a link that breaks, and show what happens'
	@echo 'make test    the linters and all tests (as root: loop devices, a real sshd)'
	@echo 'make e2e     the live CD and real guests in emulated machines (as root: takes half an hour,'
	@echo '             and 2 GiB of cache)'
	@echo 'make e2e-all that, three more guests, and a second live CD (takes as long again)'
	@echo 'make torture what can go wrong, at length: kills, power cuts, faults, bad links and disks'
	@echo 'make bench   measure against the peers on this machine, and draw the chart'
	@echo 'make lint    ruff and mypy alone'
	@echo 'make pyz     $(DIST)/p2v-receiver.pyz: the receiver as one file, for python3 >= 3.6'
	@echo 'make man     the man pages, in $(DIST)/man'
	@echo 'make lock    choose new versions for requirements.txt'
	@echo 'make clean   remove what was built'

demo: demo-packages $(READY)
	$(BIN)/p2v-sync demo

test: test-packages lint
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 3 --dist loadfile  # most of them wait
	$(BIN)/python -m pytest -m alone

# Two at a time: a boot keeps one processor busy.
e2e: e2e-packages $(READY)
	$(BIN)/python -m pytest tests/vm tests/livecd -m 'not more' --numprocesses 2 --dist worksteal

# The short forms are part of "make test".  At the end it says what was done.
torture: test-packages $(READY)
	P2V_TORTURE=long HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest --timeout 7200 \
		tests/torture tests/property/test_receiver_power.py \
		tests/unit/test_engine_hostile.py tests/unit/test_receiver_serve.py \
		tests/unit/test_frames.py tests/unit/test_codec.py tests/unit/test_wire.py

bench: bench-packages $(READY)
	$(BIN)/python -m benchmarks --json benchmarks/results.json --svg benchmarks/results.svg

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The packages of $(1) that are missing are installed; without any the package manager is not asked.
define install_packages
	@command -v dpkg-query >/dev/null || { echo 'not a Debian: see to it that there are: $(1)'; exit 0; }; \
	there=" $$(dpkg-query --show --showformat='$${Package}=$${db:Status-Status} ' $(1) 2>/dev/null)"; \
	missing=; for package in $(1); do \
		[[ $$there == *" $$package=installed "* ]] || missing+=" $$package"; \
	done; \
	if [[ $$missing ]]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq -y --no-install-recommends $$missing; \
	fi
endef

demo-packages:
	$(call install_packages,$(DEMO_PACKAGES))

test-packages:
	$(call install_packages,$(TEST_PACKAGES))

e2e-all: e2e
	$(BIN)/python -m pytest tests/vm tests/livecd -m more --numprocesses 2

e2e-packages:
	$(call install_packages,$(E2E_PACKAGES) $(LIVECD_PACKAGES))

bench-packages:
	$(call install_packages,$(BENCH_PACKAGES))

# The first Python that can do it: a name on PATH may be a version manager's stub for nothing.
find_python = for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		"$$python" -c 'import ensurepip, sqlite3, ssl, sys; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null && echo "$$python" && exit; \
	done

$(BIN)/python:
	@if [[ -z "$$($(find_python))" ]] && command -v dpkg-query >/dev/null; then \
		$(MAKE) --no-print-directory python-package; \
	fi
	@python=$$($(find_python)); \
	if [[ -z $$python ]]; then \
		echo 'no Python >= 3.11 with venv here; install one, or name it: make PYTHON=/path/to/python'; \
		exit 1; \
	fi >&2; \
	echo "making $(VENV) with $$("$$python" -VV)"; \
	"$$python" -m venv --clear $(VENV)

.PHONY: python-package
python-package:
	$(call install_packages,python3 python3-venv)

$(READY): requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

pyz: $(DIST)/p2v-receiver.pyz

# zipapp's own --main would drop the exit status.
$(DIST)/p2v-receiver.pyz: $(wildcard receiver/p2v_receiver/*.py)
	@rm -rf $(DIST)/pyz && mkdir -p $(DIST)/pyz/p2v_receiver
	@cp $^ $(DIST)/pyz/p2v_receiver/
	@printf 'import sys\n\nfrom p2v_receiver.__main__ import main\n\nsys.exit(main())\n' \
		> $(DIST)/pyz/__main__.py
	$(or $(PYTHON),python3) -m zipapp --compress --python '/usr/bin/env python3' --output $@ $(DIST)/pyz
	@rm -r $(DIST)/pyz

man: $(DIST)/man/p2v-sync.1 $(DIST)/man/p2v-receiver.1

$(DIST)/man/%: docs/%.md
	@mkdir -p $(@D)
	pandoc --standalone --from markdown-smart --to man --output $@ $<

# With the oldest Python, so that what only it needs is in the file too.
lock: $(READY)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo 'make lock wants a $(VENV) of Python 3.11'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-tools
	CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --upgrade --extra dev --strip-extras \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
		--output-file requirements.txt pyproject.toml

clean:
	rm -rf build $(DIST) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

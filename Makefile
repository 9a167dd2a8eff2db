# virt-cow. `make test` is everything that .ci/run calls; `make demo` shows the whole on a real guest,
# `make lab` gives a shell with two hosts.

VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo dev)
PREFIX  ?= /usr
GO      ?= go
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=HOME,PATH,GOPATH,GOCACHE,GOFLAGS,GOPROXY)

# A test that can't run where it stands skips and says why; here nothing may skip.
TEST    := $(SUDO) env VIRT_COW_REQUIRE_LAB=1 $(GO) test -count=1

# The driver on libvirt's own library, loaded at run time: no headers of libvirt are needed.
CGO     := -tags libvirt_cgo,libvirt_dlopen

# How long each fuzz target runs, how many crash states `make crash` explores, rounds of `make soak`.
FUZZTIME ?= 60s
STATES   ?= 3000000
ROUNDS   ?= 10

.PHONY: build test unit unit-race unit-engine unit-fast unit-cgo unit-store s3 pack iscsi e2e e2e-trixie demo lab bench lint fuzz crash soak deps deb install install-files clean

# Two programs of one grammar: engines and the hook pay for no archive; see cmd/virt-cow/lean.go.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
LEAN  := -tags virtcow_lean
build:
	$(BUILD) $(LEAN) -o bin/virt-cow ./cmd/virt-cow
	$(BUILD) -o bin/virt-cow-full ./cmd/virt-cow

# Much of it waits, for guests, daemons and time-outs: so what does not need the machine for itself runs three at a time.
test: deps build lint
	$(MAKE) --no-print-directory -j3 $(UNIT) s3 pack
	$(MAKE) --no-print-directory iscsi e2e

# Everything with the race detector, then without it what explores states, or finds something else at full speed. What takes the
# engine's tests longest, and is the same at any speed, runs once. Keys are made of passphrases without the detector: that is
# arithmetic, takes ten times as long with it, and was most of what the archive's tests took.
UNIT := unit-race unit-engine unit-fast unit-cgo unit-store
RACE := $(TEST) -timeout 20m -race
unit:
	$(MAKE) --no-print-directory -j3 $(UNIT)
unit-race:
	$(RACE) -parallel 4 -gcflags=golang.org/x/crypto/scrypt=-race=false $$($(GO) list ./internal/... ./cmd/... | grep -v -e /internal/engine$$ -e /internal/store$$ -e /internal/handover$$)
unit-cgo:
	$(RACE) $(CGO) ./internal/libvirtx/cgo
unit-engine:
	$(RACE) -skip '^TestPowerCutFindsMutants$$' ./internal/engine -crash.states=2000
	$(TEST) -timeout 20m -tags virtcow_stale -run '^TestStaleTable$$' ./internal/engine
unit-store:
	$(RACE) ./internal/store -claim.seeds=300 -claim.deaths=false
unit-fast:
	$(TEST) -timeout 20m -skip '^(TestConformance|TestEachFailure|TestMigrationOutlives)' \
	  ./internal/engine ./internal/store ./internal/handover ./test/bench/... ./test/lab/... ./hooks

# TestUpgrade builds older programs: make soak has it.
e2e: deps build
	$(TEST) -timeout 50m -v -skip '^TestUpgrade$$' ./test/e2e/...

# Hosts with the libvirt and QEMU of Debian 13: the tests of what may differ there. E2E picks others.
E2E ?= Migrat|Hook|BootDisk|Save|Clone|Libvirtd|Paused|Reboot
e2e-trixie: deps build
	root=$$(scripts/deps.sh trixie) && \
	  set -- $(SUDO) env VIRT_COW_REQUIRE_LAB=1 VIRT_COW_LAB_ROOT="$$root" $(GO) test -count=1 -timeout 30m -v && \
	  "$$@" -run 'Guest|Migrate|Checkers|Links' ./test/lab && \
	  "$$@" -run '$(E2E)' ./test/e2e

# Static, as the test program runs inside another Debian too.
pack: deps build
	$(SUDO) env CGO_ENABLED=0 VIRT_COW_REQUIRE_LAB=1 $(GO) test -count=1 -timeout 20m ./test/pack/...

# The archive on a real S3 server, which is built for it.
s3:
	$(TEST) -timeout 20m ./test/s3/...

# Real iSCSI and reservations, in an emulated machine.
iscsi: deps
	$(TEST) -timeout 15m -v ./test/iscsi/...

demo: deps build
	$(SUDO) $(GO) run ./test/demo

# A shell with two hosts, shared disks and a guest to migrate.
lab: deps build
	$(SUDO) $(GO) run ./test/lab/shell

bench: deps build
	$(SUDO) $(GO) run ./test/bench $(BENCHFLAGS)

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet $(CGO) ./...
	$(GO) vet $(LEAN) ./cmd/virt-cow
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck $(CGO) ./internal/libvirtx/... ./cmd/...
	$(GO) tool staticcheck $(LEAN) ./cmd/virt-cow

fuzz:
	@for pkg in $$($(GO) list ./internal/...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$pkg || exit 1; \
	  done; done

crash:
	$(GO) test -count=1 -timeout 0 -v -run '^TestPowerCut$$' ./internal/engine -crash.states=$(STATES)

soak: deps build crash
	databases=$$(scripts/deps.sh databases) && VIRT_COW_DATABASES="$$databases" $(TEST) -timeout 30m -v -tags virtcow_databases -run '^TestDatabases$$' ./hooks
	$(TEST) -count=$(ROUNDS) -timeout 0 -v ./test/e2e/... -e2e.soak
	$(GO) test -count=1 -timeout 0 -v ./internal/handover -handover.deep -handover.walks=2000000

deps:
	scripts/deps.sh

deb: build
	@scripts/deb.sh '$(VERSION)'

install: build install-files

# Everything but the building, for scripts/deb.sh.
D := $(DESTDIR)$(PREFIX)
install-files:
	install -D -m 0755 bin/virt-cow $(D)/bin/virt-cow
	install -D -m 0755 bin/virt-cow-full $(D)/lib/virt-cow/virt-cow-full
	install -D -m 0644 -t $(D)/lib/systemd/system systemd/*.service systemd/*.slice systemd/*.target systemd/*.timer
	install -D -m 0644 systemd/machine-scope.conf $(D)/lib/systemd/system/machine-.scope.d/50-virt-cow.conf
	install -D -m 0644 systemd/virt-cow.preset $(D)/lib/systemd/system-preset/80-virt-cow.preset
	install -D -m 0644 systemd/virt-cow.tmpfiles $(D)/lib/tmpfiles.d/virt-cow.conf
	install -D -m 0644 -t $(D)/lib/udev/rules.d packaging/udev/62-virt-cow.rules
	bin/virt-cow man $(D)/share/man/man1
	install -d $(D)/share/bash-completion/completions $(D)/share/zsh/vendor-completions $(D)/share/fish/vendor_completions.d
	bin/virt-cow completion bash >$(D)/share/bash-completion/completions/virt-cow
	bin/virt-cow completion zsh >$(D)/share/zsh/vendor-completions/_virt-cow
	bin/virt-cow completion fish >$(D)/share/fish/vendor_completions.d/virt-cow.fish
	install -D -m 0644 -t $(D)/share/doc/virt-cow README.md ARCHITECTURE.md docs/*.md docs/*.json docs/*.yml
	install -D -m 0755 -t $(D)/share/doc/virt-cow/examples/plugins hooks/plugins/*
	install -D -m 0755 -t $(D)/share/doc/virt-cow/examples/fsfreeze hooks/fsfreeze/fsfreeze-hook
	install -D -m 0755 -t $(D)/share/doc/virt-cow/examples/fsfreeze/fsfreeze-hook.d hooks/fsfreeze/fsfreeze-hook.d/*
	install -D -m 0644 -t $(D)/share/virt-cow/selinux packaging/selinux/virt_cow.*
	install -D -m 0755 hooks/qemu $(DESTDIR)/etc/libvirt/hooks/qemu.d/50-virt-cow
	install -D -m 0644 internal/config/config.toml $(DESTDIR)/etc/virt-cow/config.toml
	install -d $(DESTDIR)/etc/virt-cow/plugins.d $(DESTDIR)/etc/virt-cow/providers.d
	install -D -m 0644 packaging/virt-cow.default $(DESTDIR)/etc/default/virt-cow
	install -D -m 0644 packaging/virt-cow.logrotate $(DESTDIR)/etc/logrotate.d/virt-cow
	install -D -m 0644 -t $(DESTDIR)/etc/apparmor.d/abstractions/libvirt-qemu.d packaging/apparmor/virt-cow

clean:
	rm -rf bin bench/out

# virt-cow. `make test` is everything that .ci/run calls; `make demo` shows the whole on a real guest.

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

.PHONY: build test unit e2e demo bench lint fuzz crash soak deps install clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/virt-cow ./cmd/virt-cow

test: deps build lint unit e2e

# Everything with the race detector, then without it what explores states or measures.
unit:
	$(TEST) -timeout 20m -race $$($(GO) list ./internal/... ./cmd/... | grep -v /internal/engine$$)
	$(TEST) -timeout 20m -race $(CGO) ./internal/libvirtx/cgo
	$(TEST) -timeout 20m -race ./internal/engine -crash.states=2000
	$(TEST) -timeout 20m ./internal/engine ./test/bench/... ./test/lab/...

e2e: deps build
	$(TEST) -timeout 30m -v ./test/e2e/...

demo: deps build
	$(SUDO) $(GO) run ./test/demo

bench: deps build
	$(SUDO) $(GO) run ./test/bench $(BENCHFLAGS)

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet $(CGO) ./...
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck $(CGO) ./internal/libvirtx/... ./cmd/...

fuzz:
	@for pkg in $$($(GO) list ./internal/...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$pkg || exit 1; \
	  done; done

crash:
	$(GO) test -count=1 -timeout 0 -v -run '^TestPowerCut$$' ./internal/engine -crash.states=$(STATES)

soak: deps build crash
	$(TEST) -count=$(ROUNDS) -timeout 0 -v ./test/e2e/...

deps:
	scripts/deps.sh

install: build
	install -D -m 0755 bin/virt-cow $(DESTDIR)$(PREFIX)/bin/virt-cow
	install -D -m 0644 systemd/virt-cow.service $(DESTDIR)$(PREFIX)/lib/systemd/system/virt-cow.service

clean:
	rm -rf bin bench/out

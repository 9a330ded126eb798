# Everything that is done to footfall is one target; the workflows call nothing else. `make help` lists them.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# Without git's stamp a build depends on the sources alone, and works in a folder that another account owns.
export GOFLAGS += -buildvcs=false

VERSION := $(shell cat version.txt)
# All three follow from the commit, so that two builds of one commit are equal to the byte.
COMMIT  ?= $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)
BUILD   ?= $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
BUILT   ?= $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.build=$(BUILD) -X main.commit=$(COMMIT) -X main.built=$(BUILT)
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'

# Where the image is pushed to; its tag is always the version, never only "latest".
IMAGE ?= footfall

# The part of the statements that the tests must reach, in percent.
COVERAGE_FLOOR := 85
# How long each fuzz target runs.
FUZZTIME ?= 30s

STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##### run and build

.PHONY: run
run: need-postgres build ## start footfall and a private PostgreSQL on http://localhost:8080
	@./footfall dev

.PHONY: build
build: ## build ./footfall for this machine
	@$(GO_BUILD) -o footfall .

.PHONY: image
image: ## build the container image footfall:VERSION
	docker build $(IMAGE_ARGS) -t $(IMAGE):$(VERSION) .

IMAGE_ARGS = --build-arg VERSION=$(VERSION) --build-arg BUILD=$(BUILD) --build-arg COMMIT=$(COMMIT) --build-arg BUILT=$(BUILT)

.PHONY: image-archive
image-archive: image ## write dist/footfall-VERSION.tar, for hosts without a registry
	@mkdir -p dist
	docker save -o dist/footfall-$(VERSION).tar $(IMAGE):$(VERSION)

##### check

need-%:
	@delivery/need.sh $*

.PHONY: test
test: need-postgres need-promtool need-pgbouncer need-cc static ## all tests of the program, with the coverage floor; under 3 minutes
	go test ./delivery
	go test -race -timeout 10m -covermode=atomic -coverprofile=coverage.out .
	@go tool cover -func=coverage.out | awk '/^total:/ { sub("%", "", $$3); print "coverage: " $$3 "% of statements, at least $(COVERAGE_FLOOR)% wanted"; exit $$3 < $(COVERAGE_FLOOR) }'

.PHONY: static
static: ## gofmt, go vet and staticcheck
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not formatted, run gofmt -w on: $$unformatted" >&2; exit 1; }
	go vet -tags e2e,soak ./...
	$(STATICCHECK) -tags e2e,soak ./...

.PHONY: e2e
e2e: ## real hosts, containers, deployments and a browser; root, about 25 minutes
	go test -tags e2e -count=1 -timeout 60m -v ./e2e

.PHONY: bench
bench: need-postgres need-wrk ## the load tests behind the README's figures
	go run ./bench

.PHONY: soak
soak: need-postgres need-pgbouncer need-cc ## the tests that take longer than 20 seconds
	go test -race -tags soak -count=1 -timeout 60m -run Soak -v .

.PHONY: fuzz
fuzz: need-postgres ## run every fuzz target for FUZZTIME
	@go test -list '^Fuzz' . | grep '^Fuzz' | while read -r target; do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) .; done

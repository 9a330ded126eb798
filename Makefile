# Everything that is done to footfall is one target; the workflows call nothing else. `make help` lists them.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# Without git's stamp a build depends only on the sources, and works in a directory that another account owns.
export GOFLAGS += -buildvcs=false

VERSION := $(shell cat version.txt)
# These three follow from the commit, not from the clock or the machine: two builds of one commit are equal to the byte.
COMMIT  := $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)
BUILD   := $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
BUILT   := $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.buildNumber=$(BUILD) -X main.commit=$(COMMIT) -X main.built=$(BUILT)
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'

# Where the image is pushed to; its tag is always the version, never only "latest".
IMAGE ?= footfall
# An owner at GitHub may have capitals, the name of an image may not.
override IMAGE := $(shell tr A-Z a-z <<< '$(IMAGE)')

# The part of the statements that the tests must reach, in percent: what the README says. make cover writes it.
COVERAGE_FLOOR = $(shell sed -n 's/.*tests reach at least \([0-9]*\) %.*/\1/p' README.md)
# How long each fuzz target runs.
FUZZTIME ?= 30s

# The tools, each at one version; no go.mod has them.
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0
ACTIONLINT  := go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
COMPOSE_GO  := go run github.com/compose-spec/compose-go/v2/cmd@v2.16.2
ACT         := go run github.com/nektos/act@v0.2.89
CYCLONEDX   := go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
GREMLINS    := go run github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0
COSIGN      := go run github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3

# The end-to-end tests make hosts and networks; root's own Go caches, so that no file of root's is left in yours.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo --set-home env "PATH=$(PATH)")

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##### run and build

.PHONY: run
run: need-postgres build ## start footfall and a private PostgreSQL on http://localhost:8080
	@./footfall dev

.PHONY: build
build: ## build ./footfall for this machine
	@$(GO_BUILD) -o $(BIN) .

BIN ?= footfall

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
test: need-curl need-postgres need-promtool need-pgbouncer need-cc static ## every test of the program, with the coverage floor; 2 to 5 minutes
	go test ./delivery
	go -C proof test .
	go test -race -parallel 8 -timeout 10m -covermode=atomic -coverpkg=.,./internal/... -coverprofile=coverage.out . ./internal/...
	@go tool cover -func=coverage.out | awk '/^total:/ { sub("%", "", $$3); floor = $(COVERAGE_FLOOR); \
		print "coverage: " $$3 "% of statements; it must be at least " floor "%"; exit floor == "" || $$3 < floor }'

# One percent less than measured: between two runs, machines and versions of PostgreSQL the last digits differ.
.PHONY: cover
cover: ## the tests' coverage line by line as coverage.html, and as the README's figure
	@$(MAKE) --no-print-directory test COVERAGE_FLOOR=0
	go tool cover -html=coverage.out -o coverage.html
	@floor=$$(go tool cover -func=coverage.out | awk '/^total:/ { print int($$3 - 1) }'); \
	sed "s/tests reach at least [0-9]* %/tests reach at least $$floor %/" README.md > README.new && mv README.new README.md

.PHONY: fmt
fmt: ## format the Go files
	gofmt -w .

.PHONY: static
static: ## gofmt, go vet and staticcheck
	@files=$$(gofmt -l .); test -z "$$files" || { echo "run make fmt:" $$files >&2; exit 1; }
	go vet -tags e2e,soak ./...
	$(STATICCHECK) -tags e2e,soak ./...
	go -C proof vet -tags bites,model,mutants .
	cd proof && $(STATICCHECK) -tags bites,model,mutants .

.PHONY: lint
lint: need-shellcheck need-yamllint need-promtool ## static, and everything that is not Go: versions, workflows, scripts, YAML, playbooks, images
	@go run ./delivery
	@$(MAKE) --no-print-directory static
	$(ACTIONLINT)
	git ls-files -z | xargs -0 awk 'FNR == 1 { if (/^#!.*sh$$/ && FILENAME !~ /\.j2$$/) print FILENAME; nextfile }' | xargs shellcheck
	yamllint --strict -c ansible/.yamllint .
	promtool check rules ansible/roles/monitoring/files/alerts.yml
	promtool test rules ansible/roles/monitoring/files/alerts*_test.yml
	delivery/ansible.sh ansible-lint --offline --strict --profile production
	@# Without the plugin, the library that it is made of checks the same.
	if docker compose version >/dev/null 2>&1; then docker compose config --quiet; else $(COMPOSE_GO) compose.yaml >/dev/null; fi
	@$(MAKE) --no-print-directory vuln

# A laptop without a network must still be able to lint: only CI fails where the database cannot be reached, not its rehearsal.
.PHONY: vuln
vuln: ## look for known vulnerabilities in what the program calls
	@status=0; out=$$($(GOVULNCHECK) ./... 2>&1) || status=$$?; echo "$$out"; \
	if [ $$status != 0 ] && { [ -z "$${CI:-}" ] || [ -n "$${ACT:-}" ]; } && [[ $$out == *"fetching vulnerabilities"* ]]; then \
		echo "vuln: NOT CHECKED, the vulnerability database cannot be reached" >&2; exit 0; fi; exit $$status

.PHONY: rehearsal
rehearsal: ## run the lint job of check.yml on this machine, step by step as GitHub would
	$(ACT) push --workflows .github/workflows/check.yml --job lint --platform ubuntu-24.04=-self-hosted \
		--local-repository "$$(sed -n 's/.*uses: \(actions\/setup-go@[0-9a-f]*\).*/\1/p;T;q' .github/workflows/check.yml)=$$PWD/delivery/setup-go"

.PHONY: picture
picture: need-postgres need-chromium need-dot build ## the pictures of README, docs and link previews and favicon.ico, made again with Chromium and Graphviz
	go run ./delivery/picture card favicon page
	@# The dark one has the colours of the page in the dark.
	for name in design deployment; do dot -Tsvg docs/$$name.dot -o docs/$$name.svg; \
		sed 's/#ffe08a/#4a3a12/g; s/#94691a/#c79a3a/g; s/#1a1408/#f4ead2/g; s/#655837/#cdbf9c/g; s/#d8ccb0/#5c5032/g' \
			docs/$$name.svg > docs/$$name-dark.svg; done

.PHONY: terminal
terminal: ## the README's picture of a deployment, from the log that make e2e has left
	go run ./delivery/picture terminal

# The end-to-end tests in parts, each with the files that concern it: a pull request runs the parts whose files it changes.
E2E_image      := ^Test(Harness|Containers|ImageSaysItsVersion|WithoutAnsible)$$
E2E_service    := ^Test(Files|Service)$$/^(Backups|Browser|Converge|Faults|TLS|Wire)$$
E2E_deploy     := ^TestService$$/^(DeployUnderLoad|Operator|Registry|Workflow)$$
E2E_order      := ^TestService$$/^(Order|Updates)$$
# The figures of docs/figures.md, on a machine that does nothing else.
E2E_speed      := ^TestService$$/^Speed$$
E2E_all-or-none := ^TestService$$/^(DeployFaults|ThreeHosts)$$
E2E_database   := ^Test(Database|UpgradePostgres)$$
E2E_cloud      := ^Test(Policies|Provision)$$
E2E_monitoring := ^TestMonitoring$$
E2E_patroni    := ^TestPatroni$$
E2E_zones      := ^Test(RDS|Balancer)$$
E2E_browser    := ^TestBrowsers$$
E2E_page       := ^TestPage$$
every          := Makefile go.mod e2e/main_test.go e2e/engine_test.go e2e/hosts_test.go e2e/controller_test.go e2e/images
service        := $(every) e2e/service_test.go ansible/site.yml ansible/begin.yml ansible/library ansible/group_vars ansible/tasks ansible/roles/base ansible/roles/docker \
	ansible/roles/app ansible/roles/web ansible/roles/verify
ABOUT_image      := $(every) docs/without-ansible.md *.go internal sql assets Dockerfile compose.yaml e2e/*_test.go
ABOUT_service    := $(service) sql ansible/restore.yml ansible/roles/postgres assets e2e/*_test.go
ABOUT_deploy     := $(service) serve.go migrate.go ansible/deploy.yml delivery/fleet.py delivery/ansible.sh .github/workflows/deploy.yml e2e/deploy_test.go e2e/operator_test.go e2e/registry_test.go e2e/workflow_test.go
ABOUT_order      := $(service) ansible/move.yml ansible/recall.yml ansible/roles/postgres ansible/roles/monitoring e2e/order_test.go e2e/updates_test.go
ABOUT_all-or-none := ansible/deploy.yml ansible/roles/app e2e/allornone_test.go
ABOUT_database   := $(every) sql ansible/restore.yml ansible/upgrade-postgres.yml ansible/roles/postgres ansible/library e2e/database_test.go e2e/bucket_test.go e2e/upgrade_test.go
ABOUT_cloud      := $(every) ansible/*.yml ansible/library ansible/tasks ansible/inventory ansible/group_vars ansible/roles/fleet ansible/roles/postgres ansible/roles/web e2e/cloud_test.go e2e/moto_test.go e2e/emulator.py e2e/letin_test.go e2e/policy_test.go e2e/provision_test.go e2e/volume_test.go e2e/dns_test.go e2e/tls_test.go
ABOUT_monitoring := $(every) metrics.go ansible/roles/monitoring ansible/library e2e/monitoring_test.go e2e/monitoring.yml
ABOUT_patroni    := $(every) store.go recorder.go batch.go e2e/patroni_test.go e2e/patroni.yml
ABOUT_browser    := $(every) *.go internal assets e2e/browser e2e/browser_test.go
ABOUT_page       := $(ABOUT_browser) e2e/page_test.go
ABOUT_zones      := $(ABOUT_cloud) ansible/roles/rds ansible/roles/app e2e/rds_test.go e2e/pair_test.go e2e/balancer_test.go

.PHONY: e2e
e2e: ## real hosts, containers, deployments and a browser; as root, 80 minutes on two cores; PART=deploy for one part
	$(SUDO) go test -tags e2e -count=1 -timeout 110m -v $(if $(PART),-run '$(E2E_$(PART))',-skip '^TestVM$$|^TestService$$/^Speed$$') ./e2e

.PHONY: e2e-vm
e2e-vm: ## the deployment in a virtual machine with a kernel of its own; as root, half an hour to an hour
	$(SUDO) go test -tags e2e -count=1 -timeout 170m -v -run '^TestVM$$' ./e2e

.PHONY: e2e-changed
e2e-changed: ## PART=deploy BASE=origin/main: that part, unless what it is about is as in BASE
	@if [ -n "$${BASE:-}" ] && git diff --quiet "$$BASE..." -- $(ABOUT_$(PART)); then echo "e2e-changed: nothing that concerns $(PART)"; \
	else $(MAKE) --no-print-directory e2e; fi

##### prove

# How long faults strike, each kind at least once.
PROOF_FOR ?= 27m

.PHONY: proof
proof: need-postgres need-pgbouncer ## three instances under faults, every answer checked; half an hour, PROOF_FOR=1m for three minutes
	go -C proof run . -bench -for $(PROOF_FOR) -rate 1200 -clients 192 -visitors 250 -leaving 5 -out out

.PHONY: proof-bites
proof-bites: need-postgres need-pgbouncer ## seed errors into copies of the program, and see each found; 6 minutes
	go -C proof test -tags bites -count=1 -parallel 2 -timeout 50m -run Bites -v .

.PHONY: model
model: need-spin need-cc ## search every order of the protocol's steps, and see each guard needed; a minute
	go -C proof test -tags model -count=1 -timeout 20m -run Model -v .

# One part of it: MUTANTS=MutantsSQL, or MUTANTS=MutantsGo/batch.go
MUTANTS ?= Mutants

.PHONY: mutants
mutants: need-postgres ## put errors into the SQL and the Go code, and see the tests notice; an hour
	go -C proof test -tags mutants -count=1 -timeout 80m -run '$(MUTANTS)' -v .
	cd internal/visitor && $(GREMLINS) unleash --workers 1 --timeout-coefficient 60 --threshold-efficacy 96

##### measure

.PHONY: bench
bench: need-postgres need-wrk need-redis-server ## the load tests behind the README's figures
	go run ./bench
	@if [ -n "$${GITHUB_STEP_SUMMARY:-}" ]; then cat bench/results.md >> "$$GITHUB_STEP_SUMMARY"; fi

.PHONY: soak
soak: need-postgres need-pgbouncer need-cc ## the tests that take longer than 20 seconds
	go test -race -tags soak -count=1 -timeout 60m -run Soak -v .

.PHONY: fuzz
fuzz: need-postgres ## run every fuzz target for FUZZTIME
	@for package in . ./internal/visitor; do go test -list '^Fuzz' $$package | grep '^Fuzz' | while read -r target; do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; done; done

##### release

.PHONY: dist
# Another patch release of Go compiles other bytes.
dist: export GOTOOLCHAIN = $(shell sed -n 's/^toolchain //p' go.mod)
dist: ## build the stripped binaries of a release and their checksums into dist/
	@mkdir -p dist && rm -f dist/footfall-$(VERSION)-* dist/SHA256SUMS
	GOOS=linux GOARCH=amd64 $(GO_BUILD) -o dist/footfall-$(VERSION)-linux-amd64 .
	GOOS=linux GOARCH=arm64 $(GO_BUILD) -o dist/footfall-$(VERSION)-linux-arm64 .
	@cd dist && sha256sum footfall-$(VERSION)-linux-* | tee SHA256SUMS

.PHONY: reproducible
reproducible: dist ## build the binaries again, elsewhere and with an empty cache, and compare them to the byte
	@again=$$(mktemp -d); trap 'rm -rf "$$again"' EXIT; \
	git clone --quiet . "$$again/clone"; \
	GOCACHE="$$again/cache" $(MAKE) --no-print-directory -C "$$again/clone" dist >/dev/null; \
	diff dist/SHA256SUMS "$$again/clone/dist/SHA256SUMS" || \
		{ echo "reproducible: two builds of $(COMMIT) differ; commit everything, then look at what differs" >&2; exit 1; }; \
	echo "reproducible: two builds of $(COMMIT) are equal"

.PHONY: release-check
release-check: ## refuse a version that exists
	@if gh release view v$(VERSION) >/dev/null 2>&1; then \
		echo "release-check: $(VERSION) is released already; raise version.txt and say in CHANGELOG.md what is new" >&2; exit 1; fi
	@tagged=$$(git rev-parse --quiet --verify 'v$(VERSION)^{commit}' || true); \
	if [ -n "$$tagged" ] && [ "$$tagged" != "$$(git rev-parse HEAD)" ]; then \
		echo "release-check: the tag v$(VERSION) names another commit, $$tagged; raise version.txt" >&2; exit 1; fi
	@if [ -n "$${GITHUB_OUTPUT:-}" ]; then echo "version=$(VERSION)" >> "$$GITHUB_OUTPUT"; fi

.PHONY: notes
notes: ## print what CHANGELOG.md says of this version
	@awk -v heading='## [$(VERSION)]' '/^## / || /^\[/ { on = index($$0, heading) == 1; next } on' CHANGELOG.md

.PHONY: sbom
sbom: ## write what the binary is made of to dist/footfall.cdx.json
	$(CYCLONEDX) bin -json -std -version $(VERSION) -output dist/footfall.cdx.json dist/footfall-$(VERSION)-linux-amd64

.PHONY: image-push
image-push: ## build the image for both architectures and push it to IMAGE, with SBOM and provenance
	@mkdir -p dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) docker buildx build $(IMAGE_ARGS) --platform linux/amd64,linux/arm64 \
		--provenance=mode=max --sbom=true --metadata-file dist/image.json --tag $(IMAGE):$(VERSION) \
		--output type=image,push=true,rewrite-timestamp=true .
	@echo "$(IMAGE):$(VERSION) is $(DIGEST)"
	@if [ -n "$${GITHUB_OUTPUT:-}" ]; then printf 'image=%s\ndigest=%s\n' '$(IMAGE)' "$(DIGEST)" >> "$$GITHUB_OUTPUT"; fi

# Read by the shell, at the time: make expands a recipe before its first line runs.
DIGEST = $$(sed -n 's/.*"containerimage.digest": "\(sha256:[0-9a-f]*\)".*/\1/p' dist/image.json)

.PHONY: sign
sign: ## sign image and checksums without a key, by the identity of the account that runs this
	$(COSIGN) sign --yes $(IMAGE)@$(DIGEST)
	$(COSIGN) sign-blob --yes --bundle dist/SHA256SUMS.sigstore.json dist/SHA256SUMS

.PHONY: publish
publish: ## tag this commit and publish the release with its notes
	@{ $(MAKE) --no-print-directory notes; printf '\nImage: `%s:%s@%s`\n' $(IMAGE) $(VERSION) $(DIGEST); } > dist/notes.md
	gh release create v$(VERSION) --title 'footfall $(VERSION)' --target "$$(git rev-parse HEAD)" --notes-file dist/notes.md \
		dist/footfall-$(VERSION)-linux-* dist/SHA256SUMS dist/SHA256SUMS.sigstore.json dist/footfall.cdx.json

##### deploy

FLEET := delivery/ansible.sh $(CURDIR)/delivery/fleet.py
PLAYBOOK := delivery/ansible.sh ansible-playbook

.PHONY: site
site: ## ansible/site.yml, from an empty account or bare hosts; ARGS='-e domain=…'
	@$(PLAYBOOK) site.yml $(ARGS)

.PHONY: destroy
destroy: ## ansible/destroy.yml: removes what site.yml made in EC2; ARGS='-e destroy_data=true'
	@$(PLAYBOOK) destroy.yml $(ARGS)

.PHONY: deploy
deploy: ## DEPLOY_VERSION=1.4.1: that release on all hosts, or on none
	@$(FLEET) deploy "$${DEPLOY_VERSION:-}" "$${IMAGE:-}"

.PHONY: rollback
rollback: ## the last release that served before this one, or DEPLOY_VERSION=1.4.0
	@$(FLEET) rollback $${DEPLOY_VERSION:+"$$DEPLOY_VERSION"}

.PHONY: status
status: ## one line per host, exit status 2 if anything is red; JSON=yes for machines
	@$(FLEET) status $(if $(JSON),--json)

.PHONY: logs
logs: ## of all hosts in one stream; SINCE=10m FOLLOW=yes GREP='warn|error'
	@$(FLEET) logs "$${SINCE:-10m}" $(if $(FOLLOW),--follow) $${GREP:+"--grep=$$GREP"}

.PHONY: history
history: ## who deployed what, when, and what became of it
	@$(FLEET) history

.PHONY: ssh
ssh: ## HOST=footfall-1: a shell there; on the first host with Prometheus and Alertmanager on localhost:9090 and 9093
	@$(FLEET) ssh $${HOST:+"$$HOST"}

.PHONY: psql
psql: ## the shell of the database on the first host
	@$(FLEET) psql

.PHONY: forget
forget: ## remove what is kept of the visitor whose address is asked for, or comes on standard input
	@$(FLEET) forget

.PHONY: restore-drill
restore-drill: ## restore the newest state beside the live database, recount it, say what is missing
	@$(PLAYBOOK) restore.yml

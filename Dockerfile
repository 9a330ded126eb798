# The image: one static binary, nothing else to break into or to patch. Builds with BuildKit and with the classic
# builder alike (no RUN --mount, no syntax line, which would ask a registry).

# The compiler runs on the builder's own platform and compiles for the target's; the classic builder knows neither. It is
# go.mod's toolchain to the patch. Of its image only the certificates get into the result, so it has no digest.
FROM --platform=${BUILDPLATFORM:-linux} golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# What the program is built on is one layer: the next version is compiled in seconds.
ARG TARGETARCH
ENV CGO_ENABLED=0 GOARCH=$TARGETARCH
RUN go build -trimpath net/http html/template github.com/jackc/pgx/v5/stdlib
COPY . .
ARG BUILD=0 COMMIT=unknown BUILT=
RUN go build -trimpath -buildvcs=false -o /footfall -ldflags \
    "-s -w -X main.version=$(cat version.txt) -X main.buildNumber=$BUILD -X main.commit=$COMMIT -X main.built=$BUILT"

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /footfall /footfall
# A number, so that Kubernetes' runAsNonRoot accepts it; 65532 is distroless' "nonroot".
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/footfall", "healthcheck"]
ENTRYPOINT ["/footfall"]
ARG VERSION COMMIT BUILT
LABEL org.opencontainers.image.title="footfall" \
      org.opencontainers.image.description="A page that counts its unique visitors exactly" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.created="$BUILT"

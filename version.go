package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Filled by -ldflags "-X main.version=…".
var version, buildNumber, commit, built string

// build says which program this is.
type build struct {
	Version string `json:"version"`
	Number  string `json:"build"` // how many commits lead to this one: the newer of two builds has the higher
	Commit  string `json:"commit"`
	Built   string `json:"built"` // time of the commit, RFC 3339
	Go      string `json:"go"`
}

func (b build) String() string {
	return fmt.Sprintf("footfall %s (build %s, commit %s, %s, %s)", b.Version, b.Number, b.Commit, b.Built, b.Go)
}

func thisBuild() build {
	b := build{Version: version, Number: buildNumber, Commit: commit, Built: built, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if ok && b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	if b.Number == "" {
		b.Number = "unknown"
	}
	if b.Commit == "" {
		b.Commit = "unknown"
	}
	if b.Built == "" {
		b.Built = "unknown"
	}
	return b
}

package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
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

// thisBuild is what the linker was told, or else what Go knows of the module.
func thisBuild() build {
	module := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		module = strings.Trim(info.Main.Version, "()") // "(devel)" in a checkout
	}
	return build{
		Version: cmp.Or(version, module, "devel"),
		Number:  cmp.Or(buildNumber, "unknown"),
		Commit:  cmp.Or(commit, "unknown"),
		Built:   cmp.Or(built, "unknown"),
		Go:      runtime.Version(),
	}
}

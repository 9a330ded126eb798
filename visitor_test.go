package main

import (
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// trusting reads a list of networks as TRUSTED_PROXIES is read.
func trusting(t testing.TB, networks string) []netip.Prefix {
	t.Helper()
	cfg, err := loadConfig(environment("DATABASE_URL", "postgres://localhost", "TRUSTED_PROXIES", networks))
	require.NoError(t, err)
	return cfg.TrustedProxies
}

func TestClientAddr(t *testing.T) {
	t.Parallel()
	trusted := trusting(t, "127.0.0.0/8, 10.0.0.0/8, 2001:db8:ffff::/48")
	const (
		stranger = "203.0.113.9:40000" // a peer that is not trusted
		proxy    = "10.0.0.1:40000"
	)
	hundred := strings.Repeat("203.0.113.1, ", 60) + "198.51.100.7" + strings.Repeat(", 10.0.0.2", 39)
	tests := map[string]struct {
		peer       string
		forwarded  []string // X-Forwarded-For, one header line each
		want       string
		wantSource source
	}{
		"direct":                         {stranger, nil, "203.0.113.9", fromPeer},
		"direct, IPv6":                   {"[2001:db8::7]:443", nil, "2001:db8::7", fromPeer},
		"direct, IPv6 with zone":         {"[fe80::1%eth0]:443", nil, "fe80::1", fromPeer},
		"direct, v4-mapped":              {"[::ffff:203.0.113.9]:443", nil, "203.0.113.9", fromPeer},
		"trusted peer, no header":        {proxy, nil, "10.0.0.1", fromPeer},
		"trusted peer, v4-mapped":        {"[::ffff:10.0.0.1]:1", []string{"198.51.100.7"}, "198.51.100.7", fromForwarded},
		"trusted peer, IPv6":             {"[2001:db8:ffff::1]:1", []string{"198.51.100.7"}, "198.51.100.7", fromForwarded},
		"one trusted hop":                {proxy, []string{"198.51.100.7"}, "198.51.100.7", fromForwarded},
		"two trusted hops":               {proxy, []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7", fromForwarded},
		"spoofed left part":              {proxy, []string{"1.2.3.4, 198.51.100.7, 10.0.0.2"}, "198.51.100.7", fromForwarded},
		"spoofed with a trusted address": {proxy, []string{"10.9.9.9, 198.51.100.7"}, "198.51.100.7", fromForwarded},
		"two header lines":               {proxy, []string{"1.2.3.4", "198.51.100.7, 10.0.0.2"}, "198.51.100.7", fromForwarded},
		"two header lines, one proxy":    {proxy, []string{"198.51.100.7", "10.0.0.2"}, "198.51.100.7", fromForwarded},
		"port":                           {proxy, []string{"198.51.100.7:50123"}, "198.51.100.7", fromForwarded},
		"brackets":                       {proxy, []string{"[2001:db8::7]"}, "2001:db8::7", fromForwarded},
		"brackets and port":              {proxy, []string{"[2001:db8::7]:443"}, "2001:db8::7", fromForwarded},
		"zone":                           {proxy, []string{"fe80::7%eth0"}, "fe80::7", fromForwarded},
		"brackets, zone and port":        {proxy, []string{"[fe80::7%25eth0]:443"}, "fe80::7", fromForwarded},
		"v4-mapped":                      {proxy, []string{"::ffff:198.51.100.7"}, "198.51.100.7", fromForwarded},
		"v4-mapped, brackets and port":   {proxy, []string{"[::ffff:198.51.100.7]:1"}, "198.51.100.7", fromForwarded},
		"v4-mapped trusted hop":          {proxy, []string{"198.51.100.7,::ffff:10.0.0.2"}, "198.51.100.7", fromForwarded},
		"white space":                    {proxy, []string{" \t198.51.100.7 \t,  10.0.0.2 "}, "198.51.100.7", fromForwarded},
		"untrusted peer with header":     {stranger, []string{"198.51.100.7"}, "203.0.113.9", fromPeer},
		"untrusted peer, trusted claim":  {stranger, []string{"127.0.0.1"}, "203.0.113.9", fromPeer},
		"empty header":                   {proxy, []string{""}, "10.0.0.1", fromPeer},
		"only commas":                    {proxy, []string{",,,"}, "10.0.0.1", fromPeer},
		"empty last entry":               {proxy, []string{"198.51.100.7,"}, "10.0.0.1", fromPeer},
		"garbage":                        {proxy, []string{"unknown"}, "10.0.0.1", fromPeer},
		"garbage behind a trusted hop":   {proxy, []string{"198.51.100.7, unknown, 10.0.0.2"}, "10.0.0.2", fromForwarded},
		"garbage behind the client":      {proxy, []string{"unknown, 198.51.100.7"}, "198.51.100.7", fromForwarded},
		"obfuscated":                     {proxy, []string{"_hidden:_port"}, "10.0.0.1", fromPeer},
		"address with a bad port":        {proxy, []string{"198.51.100.7:99999"}, "10.0.0.1", fromPeer},
		"octal address":                  {proxy, []string{"0198.51.100.7"}, "10.0.0.1", fromPeer},
		"network":                        {proxy, []string{"198.51.100.0/24"}, "10.0.0.1", fromPeer},
		"half a bracket":                 {proxy, []string{"[2001:db8::7"}, "10.0.0.1", fromPeer},
		"100 hops":                       {proxy, []string{hundred}, "198.51.100.7", fromForwarded},
		"all hops trusted":               {proxy, []string{"10.0.0.4, 10.0.0.3, 10.0.0.2"}, "10.0.0.4", fromForwarded},
		"unix socket":                    {"@", []string{"198.51.100.7"}, "198.51.100.7", fromForwarded},
		"unix socket, trusted hop":       {"", []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7", fromForwarded},
		"unix socket, garbage":           {"@", []string{"unknown"}, "", fromNobody},
		"unix socket, no header":         {"@", nil, "", fromNobody},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.peer
			for _, line := range tt.forwarded {
				r.Header.Add("X-Forwarded-For", line)
			}
			addr, from := clientAddr(r, trusted)
			assert.Equal(t, tt.wantSource, from)
			if tt.want == "" {
				assert.False(t, addr.IsValid(), "got %s", addr)
				return
			}
			assert.Equal(t, tt.want, addr.String())
		})
	}
}

// With no network trusted, no header counts.
func TestClientAddrTrustingNobody(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "127.0.0.1:1"
	r.Header.Set("X-Forwarded-For", "198.51.100.7")
	addr, from := clientAddr(r, nil)
	assert.Equal(t, "127.0.0.1", addr.String())
	assert.Equal(t, fromPeer, from)
}

func TestVisitor(t *testing.T) {
	t.Parallel()
	h := hasher{key: []byte(strings.Repeat("k", 32))}
	tests := map[string]struct {
		a, b string
		same bool
	}{
		"the same IPv4 address":       {"198.51.100.7", "198.51.100.7", true},
		"v4-mapped":                   {"198.51.100.7", "::ffff:198.51.100.7", true},
		"with port":                   {"198.51.100.7", "198.51.100.7:1234", true},
		"two IPv4 addresses":          {"198.51.100.7", "198.51.100.8", false},
		"the same /64":                {"2001:db8:1:2::1", "[2001:db8:1:2:aaaa:bbbb:cccc:dddd]:443", true},
		"two /64s":                    {"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		"zone":                        {"fe80::1%eth0", "fe80::2%eth1", true},
		"a /64 that begins like IPv4": {"198.51.100.7", "c633:6407::", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, ok := parseAddr(tt.a)
			require.True(t, ok)
			b, ok := parseAddr(tt.b)
			require.True(t, ok)
			assert.Equal(t, tt.same, h.visitor(a) == h.visitor(b))
		})
	}
}

// The hash is in every database ever counted: it can never change. The wanted
// values come from OpenSSL: printf '\xc6\x33\x64\x07' | openssl dgst -sha256 -hmac kkk…
func TestVisitorHashIsForEver(t *testing.T) {
	t.Parallel()
	h := hasher{key: []byte(strings.Repeat("k", 32))}
	v4 := h.visitor(netip.MustParseAddr("198.51.100.7"))
	assert.Equal(t, "bd8f8099c9fe7100a6ff88e74989ac02", hex.EncodeToString(v4[:]))
	v6 := h.visitor(netip.MustParseAddr("2001:db8:1:2::1"))
	assert.Equal(t, "2937327fc31134f90309633c324b7180", hex.EncodeToString(v6[:]))
	assert.Equal(t, "8fce02f4d3fd7035", h.fingerprint())
	other := hasher{key: []byte(strings.Repeat("l", 32))}
	assert.NotEqual(t, v4, other.visitor(netip.MustParseAddr("198.51.100.7")), "the key makes the visitor")
	assert.NotEqual(t, h.fingerprint(), other.fingerprint())
}

func TestNotCounted(t *testing.T) {
	t.Parallel()
	const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
	tests := map[string]struct {
		method string
		header string // Name: value
		want   result
	}{
		"browser":             {"GET", "User-Agent: " + firefox, counted},
		"curl":                {"GET", "User-Agent: curl/8.14.1", counted},
		"no user agent":       {"GET", "", counted},
		"Cubot's telephone":   {"GET", "User-Agent: Mozilla/5.0 (Linux; Android 15; CUBOT KINGKONG X) Chrome/142.0", counted},
		"DuckDuckGo's app":    {"GET", "User-Agent: Mozilla/5.0 Version/18.0 Safari/605.1.15 Ddg/18.0", counted},
		"HEAD":                {"HEAD", "User-Agent: " + firefox, isHead},
		"HEAD of a bot":       {"HEAD", "User-Agent: Googlebot/2.1", isHead},
		"prefetch":            {"GET", "Sec-Purpose: prefetch", isPrefetch},
		"prerender":           {"GET", "Sec-Purpose: prefetch;prerender", isPrefetch},
		"prefetch, anonymous": {"GET", "Sec-Purpose: prefetch;anonymous-client-ip", isPrefetch},
		"older Chromium":      {"GET", "Purpose: prefetch", isPrefetch},
		"older Firefox":       {"GET", "X-Moz: Prefetch", isPrefetch},
		"another purpose":     {"GET", "Purpose: preview-later", counted},
		"Google":              {"GET", "User-Agent: Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", isBot},
		"Baidu":               {"GET", "User-Agent: Mozilla/5.0 (compatible; Baiduspider/2.0)", isBot},
		"crawler":             {"GET", "User-Agent: SomeCrawler/1.0", isBot},
		"monitor":             {"GET", "User-Agent: monitoring-plugin/2.3", isBot},
		"uptime service":      {"GET", "User-Agent: UptimeRobot/2.0", isBot},
		"link preview":        {"GET", "User-Agent: facebookexternalhit/1.1", isBot},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/", nil)
			r.Header.Del("User-Agent")
			if key, value, ok := strings.Cut(tt.header, ": "); ok {
				r.Header.Set(key, value)
			}
			assert.Equal(t, tt.want, notCounted(r))
		})
	}
}

func TestScope(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"10.1.2.3": "private", "172.31.0.1": "private", "192.168.0.1": "private", "127.0.0.1": "private",
		"::1": "private", "fd00::1": "private", "fe80::1": "private", "169.254.1.1": "private",
		"198.51.100.7": "public", "172.32.0.1": "public", "2001:db8::1": "public",
	} {
		assert.Equal(t, want, scope(netip.MustParseAddr(addr)), addr)
	}
}

// Whatever a client writes left of the address that our proxy appended, he
// stays the visitor that he is.
func FuzzClientAddr(f *testing.F) {
	for _, claim := range []string{"", "1.2.3.4", ",,", "10.0.0.1", "unknown", "[::1]:80", "fe80::1%25eth0", "198.51.100.9, 10.0.0.2", "\x00", "::ffff:1.2.3.4:5"} {
		f.Add(claim)
	}
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, claim string) {
		r := &http.Request{RemoteAddr: "10.0.0.1:1", Header: http.Header{"X-Forwarded-For": {claim, "198.51.100.7, 10.0.0.2"}}}
		addr, from := clientAddr(r, trusted)
		assert.Equal(t, "198.51.100.7", addr.String())
		assert.Equal(t, fromForwarded, from)

		r.Header["X-Forwarded-For"] = []string{claim}
		addr, _ = clientAddr(r, trusted)
		require.True(t, addr.IsValid())

		for entry := range strings.SplitSeq(claim, ",") {
			addr, ok := parseAddr(entry)
			require.Equal(t, ok, addr.IsValid())
			if !ok {
				continue
			}
			assert.Empty(t, addr.Zone())
			assert.False(t, addr.Is4In6())
			again, ok := parseAddr(addr.String())
			assert.True(t, ok)
			assert.Equal(t, addr, again)
		}
	})
}

package visitor

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

// trusting reads a list of networks.
func trusting(t testing.TB, networks string) (prefixes []netip.Prefix) {
	t.Helper()
	for network := range strings.SplitSeq(networks, ", ") {
		prefixes = append(prefixes, netip.MustParsePrefix(network))
	}
	return prefixes
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
		wantSource Source
	}{
		"direct":                         {stranger, nil, "203.0.113.9", FromPeer},
		"direct, IPv6":                   {"[2001:db8::7]:443", nil, "2001:db8::7", FromPeer},
		"direct, IPv6 with zone":         {"[fe80::1%eth0]:443", nil, "fe80::1", FromPeer},
		"direct, v4-mapped":              {"[::ffff:203.0.113.9]:443", nil, "203.0.113.9", FromPeer},
		"trusted peer, no header":        {proxy, nil, "10.0.0.1", FromPeer},
		"trusted peer, v4-mapped":        {"[::ffff:10.0.0.1]:1", []string{"198.51.100.7"}, "198.51.100.7", FromForwarded},
		"trusted peer, IPv6":             {"[2001:db8:ffff::1]:1", []string{"198.51.100.7"}, "198.51.100.7", FromForwarded},
		"one trusted hop":                {proxy, []string{"198.51.100.7"}, "198.51.100.7", FromForwarded},
		"two trusted hops":               {proxy, []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7", FromForwarded},
		"spoofed left part":              {proxy, []string{"1.2.3.4, 198.51.100.7, 10.0.0.2"}, "198.51.100.7", FromForwarded},
		"spoofed with a trusted address": {proxy, []string{"10.9.9.9, 198.51.100.7"}, "198.51.100.7", FromForwarded},
		"two header lines":               {proxy, []string{"1.2.3.4", "198.51.100.7, 10.0.0.2"}, "198.51.100.7", FromForwarded},
		"two header lines, one proxy":    {proxy, []string{"198.51.100.7", "10.0.0.2"}, "198.51.100.7", FromForwarded},
		"port":                           {proxy, []string{"198.51.100.7:50123"}, "198.51.100.7", FromForwarded},
		"brackets":                       {proxy, []string{"[2001:db8::7]"}, "2001:db8::7", FromForwarded},
		"brackets and port":              {proxy, []string{"[2001:db8::7]:443"}, "2001:db8::7", FromForwarded},
		"zone":                           {proxy, []string{"fe80::7%eth0"}, "fe80::7", FromForwarded},
		"brackets, zone and port":        {proxy, []string{"[fe80::7%25eth0]:443"}, "fe80::7", FromForwarded},
		"v4-mapped":                      {proxy, []string{"::ffff:198.51.100.7"}, "198.51.100.7", FromForwarded},
		"v4-mapped, brackets and port":   {proxy, []string{"[::ffff:198.51.100.7]:1"}, "198.51.100.7", FromForwarded},
		"v4-mapped trusted hop":          {proxy, []string{"198.51.100.7,::ffff:10.0.0.2"}, "198.51.100.7", FromForwarded},
		"white space":                    {proxy, []string{" \t198.51.100.7 \t,  10.0.0.2 "}, "198.51.100.7", FromForwarded},
		"untrusted peer with header":     {stranger, []string{"198.51.100.7"}, "203.0.113.9", FromPeer},
		"untrusted peer, trusted claim":  {stranger, []string{"127.0.0.1"}, "203.0.113.9", FromPeer},
		"empty header":                   {proxy, []string{""}, "10.0.0.1", FromPeer},
		"only commas":                    {proxy, []string{",,,"}, "10.0.0.1", FromPeer},
		"empty last entry":               {proxy, []string{"198.51.100.7,"}, "10.0.0.1", FromPeer},
		"garbage":                        {proxy, []string{"unknown"}, "10.0.0.1", FromPeer},
		"garbage behind a trusted hop":   {proxy, []string{"198.51.100.7, unknown, 10.0.0.2"}, "10.0.0.2", FromForwarded},
		"garbage behind the client":      {proxy, []string{"unknown, 198.51.100.7"}, "198.51.100.7", FromForwarded},
		"obfuscated":                     {proxy, []string{"_hidden:_port"}, "10.0.0.1", FromPeer},
		"address with a bad port":        {proxy, []string{"198.51.100.7:99999"}, "10.0.0.1", FromPeer},
		"octal address":                  {proxy, []string{"0198.51.100.7"}, "10.0.0.1", FromPeer},
		"network":                        {proxy, []string{"198.51.100.0/24"}, "10.0.0.1", FromPeer},
		"half a bracket":                 {proxy, []string{"[2001:db8::7"}, "10.0.0.1", FromPeer},
		"100 hops":                       {proxy, []string{hundred}, "198.51.100.7", FromForwarded},
		"all hops trusted":               {proxy, []string{"10.0.0.4, 10.0.0.3, 10.0.0.2"}, "10.0.0.4", FromForwarded},
		"unix socket":                    {"@", []string{"198.51.100.7"}, "198.51.100.7", FromForwarded},
		"unix socket, trusted hop":       {"", []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7", FromForwarded},
		"unix socket, garbage":           {"@", []string{"unknown"}, "", FromNobody},
		"unix socket, no header":         {"@", nil, "", FromNobody},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.peer
			for _, line := range tt.forwarded {
				r.Header.Add("X-Forwarded-For", line)
			}
			want := Client{Source: tt.wantSource}
			if tt.want != "" {
				want.addr = netip.MustParseAddr(tt.want)
			}
			assert.Equal(t, want, ClientOf(r, trusted))
		})
	}
}

// With no network trusted, no header counts.
func TestClientAddrTrustingNobody(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "127.0.0.1:1"
	r.Header.Set("X-Forwarded-For", "198.51.100.7")
	c := ClientOf(r, nil)
	assert.Equal(t, Client{netip.MustParseAddr("127.0.0.1"), FromPeer}, c)
}

// parsed reads an address that is known to be one.
func parsed(s string) Client { return Client{addr: netip.MustParseAddr(s)} }

func TestID(t *testing.T) {
	t.Parallel()
	h := Hasher{key: []byte(strings.Repeat("k", 32))}
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
			a, ok := Parse(tt.a)
			require.True(t, ok)
			b, ok := Parse(tt.b)
			require.True(t, ok)
			assert.Equal(t, tt.same, h.ID(a) == h.ID(b))
		})
	}
}

// The hash is in every database ever counted: it can never change. The wanted
// values come from OpenSSL: printf '\xc6\x33\x64\x07' | openssl dgst -sha256 -hmac kkk…
func TestVisitorHashIsForEver(t *testing.T) {
	t.Parallel()
	h := Hasher{key: []byte(strings.Repeat("k", 32))}
	v4 := h.ID(parsed("198.51.100.7"))
	assert.Equal(t, "bd8f8099c9fe7100a6ff88e74989ac02", hex.EncodeToString(v4[:]))
	v6 := h.ID(parsed("2001:db8:1:2::1"))
	assert.Equal(t, "2937327fc31134f90309633c324b7180", hex.EncodeToString(v6[:]))
	assert.Equal(t, "8fce02f4d3fd7035", h.Fingerprint())
	other := Hasher{key: []byte(strings.Repeat("l", 32))}
	assert.NotEqual(t, v4, other.ID(parsed("198.51.100.7")), "the key makes the visitor")
	assert.NotEqual(t, h.Fingerprint(), other.Fingerprint())
}

func TestNotCounted(t *testing.T) {
	t.Parallel()
	const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
	tests := map[string]struct {
		method string
		header string // Name: value
		want   Result
	}{
		"browser":             {"GET", "User-Agent: " + firefox, Counted},
		"curl":                {"GET", "User-Agent: curl/8.14.1", Counted},
		"no user agent":       {"GET", "", Counted},
		"Cubot's telephone":   {"GET", "User-Agent: Mozilla/5.0 (Linux; Android 15; CUBOT KINGKONG X) Chrome/142.0", Counted},
		"DuckDuckGo's app":    {"GET", "User-Agent: Mozilla/5.0 Version/18.0 Safari/605.1.15 Ddg/18.0", Counted},
		"HEAD":                {"HEAD", "User-Agent: " + firefox, Head},
		"HEAD of a bot":       {"HEAD", "User-Agent: Googlebot/2.1", Head},
		"prefetch":            {"GET", "Sec-Purpose: prefetch", Prefetch},
		"prerender":           {"GET", "Sec-Purpose: prefetch;prerender", Prefetch},
		"prefetch, anonymous": {"GET", "Sec-Purpose: prefetch;anonymous-client-ip", Prefetch},
		"older Chromium":      {"GET", "Purpose: prefetch", Prefetch},
		"older Firefox":       {"GET", "X-Moz: Prefetch", Prefetch},
		"another purpose":     {"GET", "Purpose: preview-later", Counted},
		"Google":              {"GET", "User-Agent: Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", Bot},
		"Baidu":               {"GET", "User-Agent: Mozilla/5.0 (compatible; Baiduspider/2.0)", Bot},
		"crawler":             {"GET", "User-Agent: SomeCrawler/1.0", Bot},
		"monitor":             {"GET", "User-Agent: monitoring-plugin/2.3", Bot},
		"uptime service":      {"GET", "User-Agent: UptimeRobot/2.0", Bot},
		"link preview":        {"GET", "User-Agent: facebookexternalhit/1.1", Bot},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/", nil)
			r.Header.Del("User-Agent")
			if key, value, ok := strings.Cut(tt.header, ": "); ok {
				r.Header.Set(key, value)
			}
			assert.Equal(t, tt.want, Uncounted(r))
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
		assert.Equal(t, want, parsed(addr).Scope(), addr)
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
		assert.Equal(t, Client{netip.MustParseAddr("198.51.100.7"), FromForwarded}, ClientOf(r, trusted))

		r.Header["X-Forwarded-For"] = []string{claim}
		require.True(t, ClientOf(r, trusted).addr.IsValid())

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

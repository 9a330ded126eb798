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
		"unspecified":                    {proxy, []string{"0.0.0.0"}, "10.0.0.1", FromPeer},
		"unspecified, IPv6":              {proxy, []string{"::"}, "10.0.0.1", FromPeer},
		"multicast":                      {proxy, []string{"224.0.0.1"}, "10.0.0.1", FromPeer},
		"multicast, IPv6":                {proxy, []string{"198.51.100.7, ff02::1"}, "10.0.0.1", FromPeer},
		"broadcast":                      {proxy, []string{"255.255.255.255"}, "10.0.0.1", FromPeer},
		"broadcast, v4-mapped":           {proxy, []string{"::ffff:255.255.255.255, 10.0.0.2"}, "10.0.0.2", FromForwarded},
		"translated":                     {proxy, []string{"64:ff9b::198.51.100.7"}, "198.51.100.7", FromForwarded},
		"translated, hexadecimal":        {proxy, []string{"[64:ff9b::c633:6407]:443"}, "198.51.100.7", FromForwarded},
		"translated peer":                {"[64:ff9b::203.0.113.9]:1", nil, "203.0.113.9", FromPeer},
		"translated, not a global one":   {"[64:ff9b::10.0.0.1]:1", []string{"198.51.100.7"}, "64:ff9b::a00:1", FromPeer},
		"another translator's prefix":    {proxy, []string{"64:ff9b:1::c633:6407"}, "64:ff9b:1::c633:6407", FromForwarded},
		"bare port":                      {proxy, []string{"2001:db8:6:7::1234:51234"}, "2001:db8:6:7::1234", FromForwarded},
		"bare port, all eight groups":    {proxy, []string{"2001:db8:6:7:1:2:3:4:443"}, "2001:db8:6:7:1:2:3:4", FromForwarded},
		"bare port, v4-mapped":           {proxy, []string{"::ffff:198.51.100.7:51234"}, "198.51.100.7", FromForwarded},
		"bare port, too large":           {proxy, []string{"2001:db8::1:65536"}, "10.0.0.1", FromPeer},
		"bare port and nothing else":     {proxy, []string{":51234"}, "10.0.0.1", FromPeer},
		"quoted":                         {proxy, []string{`"198.51.100.7"`}, "10.0.0.1", FromPeer},
		"Forwarded's form":               {proxy, []string{"for=198.51.100.7"}, "10.0.0.1", FromPeer},
		"nginx on a unix socket":         {proxy, []string{"198.51.100.7, unix:"}, "10.0.0.1", FromPeer},
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
			var want netip.Addr
			if tt.want != "" {
				want = netip.MustParseAddr(tt.want)
			}
			c := ClientOf(r, trusted, nil)
			assert.Equal(t, want, c.addr)
			assert.Equal(t, tt.wantSource, c.Source)
		})
	}
}

// With no network trusted, no header counts.
func TestClientAddrTrustingNobody(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "127.0.0.1:1"
	r.Header.Set("X-Forwarded-For", "198.51.100.7")
	assert.Equal(t, Client{netip.MustParseAddr("127.0.0.1"), FromPeer, Counted}, ClientOf(r, nil, nil))
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
		"two behind a translator":     {"64:ff9b::198.51.100.7", "64:ff9b::198.51.100.8", false},
		"the same with and without":   {"64:ff9b::198.51.100.7", "198.51.100.7", true},
		"a port of four digits":       {"2001:db8:1:2::1:8080", "2001:db8:1:2::1:51234", true},
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

// What browsers, proxies of browsers and pages say about a request.
func TestResult(t *testing.T) {
	t.Parallel()
	const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
	tests := map[string]struct {
		method  string
		headers string // Name: value, a line each
		want    Result
	}{
		"browser":              {"GET", "User-Agent: " + firefox, Counted},
		"a person opens it":    {"GET", "User-Agent: " + firefox + "\nSec-Fetch-Dest: document\nSec-Fetch-Mode: navigate", Counted},
		"HEAD":                 {"HEAD", "User-Agent: " + firefox, Head},
		"HEAD of a bot":        {"HEAD", "User-Agent: Googlebot/2.1", Head},
		"prefetch":             {"GET", "Sec-Purpose: prefetch", Prefetch},                                                                // WICG/nav-speculation, prefetch.bs
		"prerender":            {"GET", "Sec-Purpose: prefetch;prerender", Prefetch},                                                      // WICG/nav-speculation, prerendering-cross-origin
		"prefetch, anonymous":  {"GET", "Sec-Purpose: prefetch;anonymous-client-ip", Prefetch},                                            // buettner/private-prefetch-proxy
		"prefetch of a link":   {"GET", "Sec-Purpose: prefetch\nSec-Fetch-Dest: empty", Prefetch},                                         // <link rel=prefetch>
		"prefetch of a bot":    {"GET", "Sec-Purpose: prefetch\nUser-Agent: Googlebot/2.1", Prefetch},                                     // it may be a person's browser
		"older Chromium":       {"GET", "Purpose: prefetch", Prefetch},                                                                    // chromium before 2022
		"older Firefox":        {"GET", "X-Moz: Prefetch", Prefetch},                                                                      // bugzilla 358230
		"another purpose":      {"GET", "Purpose: preview-later", Counted},                                                                //
		"old Safari's preview": {"GET", "X-Purpose: preview", Counted},                                                                    // not supported: Safari before 2013
		"picture":              {"GET", "Sec-Fetch-Dest: image", Embedded},                                                                // <img src>, and so on: w3c/webappsec-fetch-metadata
		"frame":                {"GET", "Sec-Fetch-Dest: iframe\nSec-Fetch-Mode: navigate\nUser-Agent: " + firefox, Embedded},             //
		"fetch of a script":    {"GET", "Sec-Fetch-Dest: empty", Embedded},                                                                //
		"style sheet":          {"GET", "Sec-Fetch-Dest: style", Embedded},                                                                //
		"object":               {"GET", "Sec-Fetch-Dest: object", Embedded},                                                               //
		"embed":                {"GET", "Sec-Fetch-Dest: embed", Embedded},                                                                //
		"script":               {"GET", "Sec-Fetch-Dest: script", Embedded},                                                               //
		"video":                {"GET", "Sec-Fetch-Dest: video", Embedded},                                                                //
		"font":                 {"GET", "Sec-Fetch-Dest: font", Embedded},                                                                 //
		"WebSocket":            {"GET", "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", Embedded}, // RFC 6455, section 4.1
		"one to come":          {"GET", "Sec-Fetch-Dest: hologram", Embedded},                                                             //
		"empty destination":    {"GET", "Sec-Fetch-Dest: ", Counted},                                                                      // a proxy that blanks it says nothing
		"bot in a frame":       {"GET", "Sec-Fetch-Dest: iframe\nUser-Agent: Googlebot/2.1", Embedded},                                    //
		"bot":                  {"GET", "User-Agent: Googlebot/2.1", Bot},                                                                 //
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/", nil)
			r.Header.Del("User-Agent")
			for line := range strings.SplitSeq(tt.headers, "\n") {
				key, value, ok := strings.Cut(line, ": ")
				require.True(t, ok)
				r.Header.Set(key, value)
			}
			assert.Equal(t, tt.want, ClientOf(r, nil, nil).Result)
		})
	}
}

// Agents by what sends them. isbot is omrilotan/isbot's fixtures (344052d), c-u-a monperrus/crawler-user-agents, dd the
// fixtures of matomo-org/device-detector (3856a2869); the rest is the vendor's documentation.
func TestPrograms(t *testing.T) {
	t.Parallel()
	const chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
	programs := []string{
		// Crawlers.
		"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", // c-u-a
		"Mozilla/5.0 (compatible; Baiduspider/2.0)",                                // c-u-a
		"Screaming Frog SEO Spider/11.1",                                           // isbot
		"SomeCrawler/1.0",
		"GoogleOther",                                                                         // developers.google.com/search/docs/crawling-indexing/google-common-crawlers
		"Mozilla/5.0 (compatible; Google-InspectionTool/1.0;)",                                // same page
		"Mediapartners-Google",                                                                // same page
		"Mozilla/5.0 (compatible; CensysInspect/1.1; +https://about.censys.io/)",              // c-u-a
		"Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)", // c-u-a
		"meta-externalagent/1.1",                                                              // developers.facebook.com/docs/sharing/webmasters/web-crawlers
		"Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; Claude-User/1.0; +Claude-User@anthropic.com)",                 // c-u-a
		"Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; Perplexity-User/1.0; +https://perplexity.ai/perplexity-user)", // c-u-a
		"Feedly/1.0 (+http://www.feedly.com/fetcher.html; like FeedFetcher-Google)",                                                   // c-u-a
		"Mozilla/5.0 (Linux; Android 5.0) AppleWebKit/537.36 (KHTML, like Gecko) Mobile Safari/537.36 (compatible; Bytespider)",       // c-u-a: android, but compatible
		// Link previews.
		"facebookexternalhit/1.1", // developers.facebook.com/docs/sharing/webmasters/web-crawlers
		"WhatsApp/2.23.20.0",      // c-u-a
		"Mozilla/5.0 (Windows NT 6.1; WOW64) AppleWebKit/534+ (KHTML, like Gecko) BingPreview/1.0b", // c-u-a
		"http.rb/5.1.1 (Mastodon/4.1.0; +https://mastodon.example/)",                                // mastodon/mastodon#4486
		"Mozilla/5.0 (compatible; Bluesky Cardyb/1.1; +mailto:support@bsky.app)",                    // c-u-a
		"Mozilla/5.0 (compatible; vkShare; +http://vk.com/dev/Share)",                               // c-u-a
		"Mozilla/5.0 (compatible; Embedly/0.2; +http://support.embed.ly/)",                          // c-u-a
		"Mozilla/5.0 (compatible; FlipboardProxy/1.2; +http://flipboard.com/browserproxy)",          // c-u-a
		// Health probes: all that 22 vendors document.
		"ELB-HealthChecker/2.0", // AWS load balancers
		"kube-probe/1.31",       // fnando/browser#533
		"GoogleHC/1.0",          // Google Cloud load balancing
		"GoogleStackdriverMonitoring-UptimeChecks(https://cloud.google.com/monitoring)",
		"Amazon-Route53-Health-Check-Service (ref 0a0a0a0a; report http://amzn.to/1vsZADi)",
		"Envoy/HC",                 // envoyproxy.io, health checking
		"Consul Health Check",      // hashicorp/consul
		"Blackbox Exporter/0.25.0", // prometheus/blackbox_exporter
		"Gatus/1.0",                // TwiN/gatus
		"Mozilla/5.0 (Windows NT 6.2; WOW64) AppleWebKit/537.4 (KHTML, like Gecko) Chrome/98 Safari/537.4 (StatusCake)",
		"DatadogSynthetics",
		"NewRelicPinger/1.0 (1234)",
		"check_http/v2.3.3 (nagios-plugins 2.3.3)",
		"check_http/v2.2 (monitoring-plugins 2.2)",
		"Mozilla/5.0 (compatible; Cloudflare-Traffic-Manager/1.0; +https://www.cloudflare.com/traffic-manager/; pool-id: 0a0a)",
		"Mozilla/5.0 (compatible; Cloudflare-Healthchecks/1.0; +https://www.cloudflare.com/; healthcheck-id: 0a0a)",
		"Edge Health Probe", // Azure Front Door
		"updown.io daemon 2.11",
		"Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
		"Uptime-Kuma/1.23.16", // louislam/uptime-kuma
		"Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
		"Mozilla/5.0 (compatible; PRTG Network Monitor (www.paessler.com); Windows)",
		// Browsers without a person, and tools.
		strings.Replace(chrome, "Chrome/", "HeadlessChrome/", 1),
		chrome + " Chrome-Lighthouse",  // GoogleChrome/lighthouse
		chrome + " PTST/231030.181600", // catchpoint/WebPageTest.agent
		"W3C_Validator/1.3",            // c-u-a
		"W3C-checklink/4.81 libwww-perl/6.15",
	}
	for _, agent := range programs {
		assert.True(t, isProgram(agent), agent)
	}
	people := []string{
		chrome,
		"Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
		"Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.2; Trident/6.0)",
		"Mozilla/5.0 Version/18.0 Safari/605.1.15 Ddg/18.0",              // DuckDuckGo's browser
		"Mozilla/5.0 (Linux; Android 15; CUBOT KINGKONG X) Chrome/142.0", // dd, and those below
		"Mozilla/5.0 (Linux; Android 7.0; M bot 54) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/78.0.3904.96 Mobile Safari/537.36",
		"Mozilla/5.0 (Linux; Android 8.1.0; XBot_Senior Build/O11019) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/65.0.3325.109 Mobile Safari/537.36",
		"Mozilla/5.0 (Linux; Android 13; Spider 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36",
		"Mozilla/5.0 (Linux; Android 6.0; VR BOT 552) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/72.0.3626.121 Mobile Safari/537.36",
		"Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/87.0.4280.88 Safari/537.36 HbbTV/1.6.1 (+DRM; LGE/KTC/BOTECH; 58BSE9503)",
		// Says nothing about being a program, so that nobody who tries the page is surprised.
		"", "curl/8.14.1", "Wget/1.21.4", "python-requests/2.32.3", "Go-http-client/1.1", "okhttp/4.12.0", "wrk/4.2.0", "Mozilla",
	}
	for _, agent := range people {
		assert.False(t, isProgram(agent), agent)
	}
	// A known false match: neither Android nor HbbTV, and "bot" in the name of a bank.
	assert.True(t, isProgram("Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; Banca Caboto s.p.a.; rv:11.0) like Gecko"))
}

func TestIgnoredNetworks(t *testing.T) {
	t.Parallel()
	trusted, ignored := trusting(t, "127.0.0.0/8"), trusting(t, "198.51.100.0/24, 2001:db8:1::/48")
	tests := map[string]struct {
		peer, forwarded string
		want            Result
	}{
		"inside":                       {"198.51.100.7:1", "", Ignored},
		"outside":                      {"198.51.101.7:1", "", Counted},
		"inside, IPv6":                 {"[2001:db8:1:2::3]:1", "", Ignored},
		"inside, by a proxy":           {"127.0.0.1:1", "198.51.100.7", Ignored},
		"inside, by a translator":      {"[64:ff9b::198.51.100.7]:1", "", Ignored},
		"claimed without a proxy":      {"203.0.113.9:1", "198.51.100.7", Counted},
		"the proxy is inside, not who": {"127.0.0.1:1", "198.51.100.7, 203.0.113.9", Counted},
		"nobody":                       {"@", "", NoAddress},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.peer
			if tt.forwarded != "" {
				r.Header.Set("X-Forwarded-For", tt.forwarded)
			}
			assert.Equal(t, tt.want, ClientOf(r, trusted, ignored).Result)
		})
	}
}

func TestParseNetwork(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "192.0.2.1": "192.0.2.1/32", "2001:db8::/32": "2001:db8::/32", "2001:db8::1": "2001:db8::1/128",
		"::ffff:172.16.0.0/108": "172.16.0.0/12", "::ffff:0:0/96": "0.0.0.0/0", "::ffff:192.0.2.1": "192.0.2.1/32", "64:ff9b::203.0.113.0/120": "203.0.113.0/24", "::/0": "::/0",
	} {
		got, err := ParseNetwork(s)
		require.NoError(t, err, s)
		assert.Equal(t, netip.MustParsePrefix(want), got, s)
	}
	for _, s := range []string{"", "10.0.0.0/33", "10.0.0.2/255.255.255.192", "fe80::1%eth0", "localhost", "10.0.0.0/8;"} {
		_, err := ParseNetwork(s)
		assert.Error(t, err, s)
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
		assert.Equal(t, Client{netip.MustParseAddr("198.51.100.7"), FromForwarded, Counted}, ClientOf(r, trusted, nil))

		r.Header["X-Forwarded-For"] = []string{claim}
		require.True(t, ClientOf(r, trusted, nil).addr.IsValid())

		for entry := range strings.SplitSeq(claim, ",") {
			addr, ok := parseAddr(entry)
			if !ok {
				continue
			}
			require.True(t, addr.IsValid())
			assert.Empty(t, addr.Zone())
			assert.False(t, addr.Is4In6())
			again, ok := parseAddr(addr.String())
			assert.True(t, ok)
			assert.Equal(t, addr, again)
		}
	})
}

// Package visitor tells from a request who its visitor is, or why it does not
// count. Only an [ID] and a reason leave it: beyond it there is no address.
package visitor

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// ID is how a visitor is known: the first 16 bytes of
// HMAC-SHA-256(visitor key, normalised address). With 100 million visitors the
// chance that any two share one is below 2^-74.
type ID [16]byte

// Hasher turns addresses into visitors.
type Hasher struct{ key []byte }

// MinKey is the least length of a key in bytes: as long as the
// hash's output, below which HMAC gets weaker (RFC 2104, section 3).
const MinKey = 32

// NewHasher returns the hasher with this visitor key.
func NewHasher(key []byte) Hasher { return Hasher{key} }

// ID returns the visitor that c is: IPv4 counts by address, IPv6 by its /64, the
// network that one subscriber's devices share (RFC 6177). It is zero for a client
// without an address.
func (h Hasher) ID(c Client) ID {
	if !c.addr.IsValid() {
		return ID{}
	}
	mac := hmac.New(sha256.New, h.key)
	b := c.addr.AsSlice()
	if c.addr.Is6() {
		b = b[:8]
	}
	mac.Write(b) // 4 or 8 bytes: the two kinds cannot meet
	var sum [sha256.Size]byte
	return ID(mac.Sum(sum[:0])[:16])
}

// Fingerprint identifies the key without telling it: 16 hex digits.
func (h Hasher) Fingerprint() string {
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte("footfall visitor key"))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// Source says where a client's address came from.
type Source string

const (
	FromPeer      Source = "peer"      // the other end of the connection
	FromForwarded Source = "forwarded" // X-Forwarded-For, written by a trusted proxy
	FromNobody    Source = "none"      // a proxy on the unix socket that names no client
)

// Client is who asks for the page. Its address stays in here.
type Client struct {
	addr   netip.Addr // invalid only for [FromNobody]
	Source Source
	Result Result // [Counted], unless something says that the request does not count
}

// ClientOf returns who sent a request for the page, and whether that counts.
// Visits from ignored networks do not.
func ClientOf(r *http.Request, trusted, ignored []netip.Prefix) Client {
	c := Client{Result: resultOf(r)}
	c.addr, c.Source = addrOf(r, trusted)
	if c.Result == Counted {
		if c.Source == FromNobody {
			c.Result = NoAddress
		} else if contains(ignored, c.addr) {
			c.Result = Ignored
		}
	}
	return c
}

// addrOf returns the address that a request came from: its peer, unless
// the peer is a trusted proxy. Then the X-Forwarded-For lines are read from
// right to left, as each proxy appends, past other trusted proxies; the first
// address that is not trusted is the client. What is left of it is the
// client's own claim and is not read. An entry that is no address ends the
// walk at the last good one.
func addrOf(r *http.Request, trusted []netip.Prefix) (netip.Addr, Source) {
	var client netip.Addr
	// On a unix socket the peer has no address. The socket's
	// permissions decide which program may connect, so it is a trusted proxy.
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		client = normal(peer.Addr())
		if !contains(trusted, client) {
			return client, FromPeer
		}
	}
	from := FromPeer
	if !client.IsValid() {
		from = FromNobody
	}
	rest := strings.Join(r.Header["X-Forwarded-For"], ",")
	for more := rest != ""; more; {
		entry := rest
		comma := strings.LastIndexByte(rest, ',')
		if more = comma >= 0; more {
			rest, entry = rest[:comma], rest[comma+1:]
		}
		addr, ok := parseAddr(entry)
		if !ok {
			break
		}
		client, from = addr, FromForwarded
		if !contains(trusted, addr) {
			break
		}
	}
	return client, from
}

// Parse reads the address of a client as proxies and old tables write it.
func Parse(s string) (Client, bool) {
	addr, ok := parseAddr(s)
	return Client{addr: addr}, ok
}

// parseAddr reads an address as proxies and old tables write it: with or
// without brackets, port or zone. An address that no client can have is none.
func parseAddr(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	ap, err := netip.ParseAddrPort(s)
	addr := ap.Addr()
	if err != nil {
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			s = s[1 : len(s)-1]
		}
		addr, err = netip.ParseAddr(s)
	}
	if colon := strings.LastIndexByte(s, ':'); err != nil && colon >= 0 {
		// Azure's Application Gateway appends the port to IPv6 without brackets. A port of
		// four digits reads as a part of the address: of its last 64 bits, which do not count.
		if ap, err = netip.ParseAddrPort("[" + s[:colon] + "]" + s[colon:]); err == nil {
			addr = ap.Addr()
		}
	}
	addr = normal(addr)
	return addr, err == nil && !addr.IsUnspecified() && !addr.IsMulticast() && addr != broadcast
}

// ParseNetwork reads a network of clients, or one address.
func ParseNetwork(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if addr := normal(prefix.Addr()); addr.Is4() && prefix.Addr().Is6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(addr, prefix.Bits()-96) // clients are compared as IPv4
	}
	return prefix, err
}

var (
	broadcast  = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	translated = netip.MustParsePrefix("64:ff9b::/96") // IPv4 behind a translator (RFC 6052, section 2.1)
)

// normal drops what does not distinguish clients: the v4-mapped form
// (RFC 4291, section 2.5.5.2), a translator's prefix and the zone.
func normal(addr netip.Addr) netip.Addr {
	if translated.Contains(addr) {
		b := addr.As16()
		// The prefix is for global addresses only (section 3.1), so that nobody becomes a
		// trusted 10.0.0.1 by it.
		if v4 := netip.AddrFrom4([4]byte(b[12:])); v4.IsGlobalUnicast() && !v4.IsPrivate() {
			return v4
		}
	}
	return addr.Unmap().WithZone("")
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// Scope is "private" for an address that no two sites have in common, such as
// a proxy's inner one; "public" otherwise.
func (c Client) Scope() string {
	if addr := c.addr; addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() {
		return "private"
	}
	return "public"
}

// Result says what became of a visit.
type Result string

const (
	Counted   Result = "counted"
	Bot       Result = "bot"        // the user agent says that it is a program
	Embedded  Result = "embedded"   // another page asks, for a part of itself
	Head      Result = "head"       // HEAD asks for no page
	Ignored   Result = "ignored"    // from a network whose visits are not counted
	NoAddress Result = "no_address" // the proxy did not say who the client is
	Prefetch  Result = "prefetch"   // the browser asks ahead: if the person comes, it must ask again

	// Of a visit that would count:
	Unavailable Result = "unavailable" // not counted: the database could not be asked
	Unconfirmed Result = "unconfirmed" // counted or not: the database did not answer in time
)

// resultOf returns why a request for the page does not count, whoever sent it,
// or [Counted].
func resultOf(r *http.Request) Result {
	if r.Method == http.MethodHead {
		return Head
	}
	for _, key := range [...]string{"Sec-Purpose", "Purpose", "X-Moz"} {
		v := strings.ToLower(r.Header.Get(key))
		if strings.Contains(v, "prefetch") || strings.Contains(v, "prerender") {
			return Prefetch
		}
	}
	// Chromium says nothing of the destination where a script opens a WebSocket.
	dest := r.Header.Get("Sec-Fetch-Dest")
	if dest != "" && dest != "document" || r.Header.Get("Sec-WebSocket-Key") != "" {
		return Embedded
	}
	if isProgram(r.UserAgent()) {
		return Bot
	}
	return Counted
}

// Words of user agents that say that they are a program and carry no link, chosen
// by lists of real ones (docs/figures.md). Each false match leaves a person
// uncounted. Names of telephones hold the ambiguous ones: Cubot, M bot, Spider.
var (
	programWords = []string{
		"crawl", "preview", "external", "whatsapp/", "-google", "googleother", "-user/", // crawlers, link previews, assistants
		"monitor", "uptime", "probe", "synthetic", "pinger", "googlehc", "envoy/hc", "blackbox", "gatus", "statuscake", "updown", // health probes
		"headless", "lighthouse", "ptst/", "inspect", "validator", // browsers without a person, tools
	}
	ambiguousWords = []string{"bot", "spider", "check"}
)

// isProgram reports whether a user agent says that it is one: by a link to
// whoever runs it, or by a word.
func isProgram(agent string) bool {
	agent = strings.ToLower(agent)
	has := func(word string) bool { return strings.Contains(agent, word) }
	if has("://") || has("mailto:") || slices.ContainsFunc(programWords, has) {
		return true
	}
	device := (has("android") || has("hbbtv")) && !has("compatible")
	return !device && slices.ContainsFunc(ambiguousWords, has)
}

// Package visitor tells from a request who its visitor is, or why it does not
// count. Only an [ID] and a reason leave it: beyond it there is no address.
package visitor

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"
)

// ID is how a visitor is known: the first 16 bytes of
// HMAC-SHA-256(visitor key, normalised address). With 100 million visitors the
// chance that any two share one is below 2^-74.
type ID [16]byte

// Hasher turns addresses into visitors.
type Hasher struct{ key []byte }

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

// Client is where a request came from.
type Client struct {
	addr   netip.Addr // invalid only for [FromNobody]
	Source Source
}

// ClientOf returns the client whose address a request came from: its peer, unless
// the peer is a trusted proxy. Then the X-Forwarded-For lines are read from
// right to left, as each proxy appends, past other trusted proxies; the first
// address that is not trusted is the client. What is left of it is the
// client's own claim and is not read. An entry that is no address ends the
// walk at the last good one.
func ClientOf(r *http.Request, trusted []netip.Prefix) Client {
	var client netip.Addr
	// On a unix socket the peer has no address. The socket's
	// permissions decide which program may connect, so it is a trusted proxy.
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		client = normal(peer.Addr())
		if !contains(trusted, client) {
			return Client{client, FromPeer}
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
	return Client{client, from}
}

// Parse reads the address of a client as proxies and old tables write it.
func Parse(s string) (Client, bool) {
	addr, ok := parseAddr(s)
	return Client{addr: addr}, ok
}

// parseAddr reads an address as proxies and old tables write it: with or
// without brackets, port or zone.
func parseAddr(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return normal(ap.Addr()), true
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		return normal(addr), true
	}
	return netip.Addr{}, false
}

// normal drops what does not distinguish clients: the v4-mapped form
// (RFC 4291, section 2.5.5.2) and the zone.
func normal(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

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
	Bot       Result = "bot"        // the user agent calls itself an automat
	Prefetch  Result = "prefetch"   // the browser fetched ahead, the page may never be shown
	Head      Result = "head"       // HEAD asks for no page
	NoAddress Result = "no_address" // the proxy did not say who the client is
)

// botWords are what automats call themselves by, the makers of link previews
// among them. A word too many turns people away from the count, so: short.
var botWords = []string{"bot", "crawl", "spider", "monitor", "uptime", "healthcheck", "preview", "whatsapp/", "facebookexternalhit"}

// Uncounted returns why a request for the page does not count, or [Counted].
func Uncounted(r *http.Request) Result {
	if r.Method == http.MethodHead {
		return Head
	}
	for _, key := range [...]string{"Sec-Purpose", "Purpose", "X-Moz"} {
		v := strings.ToLower(r.Header.Get(key))
		if strings.Contains(v, "prefetch") || strings.Contains(v, "prerender") {
			return Prefetch
		}
	}
	agent := strings.ToLower(r.UserAgent())
	agent = strings.ReplaceAll(agent, "cubot", "") // a maker of telephones
	for _, word := range botWords {
		if strings.Contains(agent, word) {
			return Bot
		}
	}
	return Counted
}

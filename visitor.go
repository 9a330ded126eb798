package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"
)

// visitorID is how a visitor is known: the first 16 bytes of
// HMAC-SHA-256(visitor key, normalised address). With 100 million visitors the
// chance that any two share one is below 2^-74.
type visitorID [16]byte

// hasher turns addresses into visitors.
type hasher struct{ key []byte }

// visitor returns the visitor behind addr: IPv4 counts by address, IPv6 by its /64, the
// network that one subscriber's devices share (RFC 6177).
func (h hasher) visitor(addr netip.Addr) visitorID {
	mac := hmac.New(sha256.New, h.key)
	b := addr.AsSlice()
	if addr.Is6() {
		b = b[:8]
	}
	mac.Write(b) // 4 or 8 bytes: the two kinds cannot meet
	var sum [sha256.Size]byte
	return visitorID(mac.Sum(sum[:0])[:16])
}

// fingerprint identifies the key without telling it: 16 hex digits.
func (h hasher) fingerprint() string {
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte("footfall visitor key"))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// source says where a client's address came from.
type source string

const (
	fromPeer      source = "peer"      // the other end of the connection
	fromForwarded source = "forwarded" // X-Forwarded-For, written by a trusted proxy
	fromNobody    source = "none"      // a proxy on the unix socket that names no client
)

// clientAddr returns the address that a request came from: its peer, unless
// the peer is a trusted proxy. Then the X-Forwarded-For lines are read from
// right to left, as each proxy appends, past other trusted proxies; the first
// address that is not trusted is the client. What is left of it is the
// client's own claim and is not read. An entry that is no address ends the
// walk at the last good one. The address is invalid only for [fromNobody].
func clientAddr(r *http.Request, trusted []netip.Prefix) (netip.Addr, source) {
	var client netip.Addr
	// On a unix socket the peer has no address. The socket's
	// permissions decide which program may connect, so it is a trusted proxy.
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		client = normal(peer.Addr())
		if !contains(trusted, client) {
			return client, fromPeer
		}
	}
	from := fromPeer
	if !client.IsValid() {
		from = fromNobody
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
		client, from = addr, fromForwarded
		if !contains(trusted, addr) {
			break
		}
	}
	return client, from
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

// scope is "private" for an address that no two sites have in common, such as
// a proxy's inner one; "public" otherwise.
func scope(addr netip.Addr) string {
	if addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() {
		return "private"
	}
	return "public"
}

// result says what became of a visit.
type result string

const (
	counted     result = "counted"
	isBot       result = "bot"         // the user agent calls itself an automat
	isPrefetch  result = "prefetch"    // the browser fetched ahead, the page may never be shown
	isHead      result = "head"        // HEAD asks for no page
	noAddress   result = "no_address"  // the proxy did not say who the client is
	unavailable result = "unavailable" // not counted: the database could not be asked
	unconfirmed result = "unconfirmed" // counted or not: the database did not answer in time
)

// botWords are what automats call themselves by, the makers of link previews
// among them. A word too many turns people away from the count, so: short.
var botWords = []string{"bot", "crawl", "spider", "monitor", "uptime", "healthcheck", "preview", "whatsapp/", "facebookexternalhit"}

// notCounted returns why a request for the page does not count, or [counted].
func notCounted(r *http.Request) result {
	if r.Method == http.MethodHead {
		return isHead
	}
	for _, key := range [...]string{"Sec-Purpose", "Purpose", "X-Moz"} {
		v := strings.ToLower(r.Header.Get(key))
		if strings.Contains(v, "prefetch") || strings.Contains(v, "prerender") {
			return isPrefetch
		}
	}
	agent := strings.ToLower(r.UserAgent())
	agent = strings.ReplaceAll(agent, "cubot", "") // a maker of telephones
	for _, word := range botWords {
		if strings.Contains(agent, word) {
			return isBot
		}
	}
	return counted
}

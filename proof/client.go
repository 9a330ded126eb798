package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// target is one instance of the service.
type target struct {
	index  int
	base   string // such as http://127.0.0.1:8080
	client *http.Client
}

// newTarget understands a URL, and unix:/path for a socket.
func newTarget(index int, url string) *target {
	transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	base := strings.TrimSuffix(url, "/")
	if path, ok := strings.CutPrefix(url, "unix:"); ok {
		base = "http://footfall"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
	}
	return &target{index, base, &http.Client{Transport: transport}}
}

// patience is how long a request may take: the page promises 2 s.
const patience = 8 * time.Second

// get asks for path as a proxy would ask for the client at that address. sent
// reports whether the request may have left.
func (t *target) get(ctx context.Context, path, address string) (status int, body []byte, sent bool, err error) {
	// A body of no bytes that net/http cannot rewind: so it never sends the
	// request a second time by itself, which would be a second visit.
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.base+path, io.MultiReader())
	if err != nil {
		return 0, nil, false, err
	}
	request.Header.Set("User-Agent", "footfall-proof/1")
	if address != "" {
		request.Header.Set("X-Forwarded-For", address)
	}
	response, err := t.client.Do(request)
	if err != nil {
		dial, ok := errors.AsType[*net.OpError](err)
		return 0, nil, !ok || dial.Op != "dial", err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, true, err
}

// crowd is the visitors of one run: a random /48 of the addresses that RFC 4193
// sets aside for private use, with a /64 for each of 65,536 visitors. So no run
// meets the visitors of another, nor people.
type crowd [5]byte

func newCrowd() (c crowd) {
	rand.Read(c[:])
	return c
}

func (c crowd) address(visitor int) string {
	return fmt.Sprintf("fd%02x:%x:%x:%x::1", c[0], int(c[1])<<8|int(c[2]), int(c[3])<<8|int(c[4]), visitor&0xffff)
}

// visit opens the page once. An error is an answer that this program cannot
// read, which is a fault in itself.
func (t *target) visit(ctx context.Context, c crowd, visitor int, h *history) (v visit, err error) {
	v = visit{visitor: visitor, instance: t.index, call: h.now(), outcome: unknown}
	status, body, sent, err := t.get(ctx, "/", c.address(visitor))
	v.ret = h.now()
	switch {
	case err != nil && !sent:
		v.outcome = refused
	case err != nil: // unknown
	case strings.Contains(string(body), notCounted):
		if v.outcome = refused; status == http.StatusOK {
			return v, fmt.Errorf("the page does not count this program's visits: %.300q", text(body))
		}
	case status == http.StatusOK:
		if err := v.readPage(string(body)); err != nil {
			return v, err
		}
		v.outcome = confirmed
	}
	if v.outcome == unknown {
		v.ret = never
	}
	return v, nil
}

func text(page []byte) string {
	return strings.Join(strings.Fields(tag.ReplaceAllString(string(page), " ")), " ")
}

// read asks for totals. ok is false where there was no answer to check.
func (t *target) read(ctx context.Context, which int, h *history) (r read, ok bool, err error) {
	what := readings[which]
	r = read{path: what.path, instance: t.index, call: h.now()}
	status, body, _, err := t.get(ctx, what.path, "")
	r.ret = h.now()
	if err != nil || status != http.StatusOK {
		return r, false, nil
	}
	if r.visits, r.visitors, err = what.read(body); err != nil {
		return r, false, fmt.Errorf("%s: %w", what.path, err)
	}
	return r, true, nil
}

package main

import (
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// cutter is between a program and its database and cuts connections. It
// knows nothing of what passes: after a quiet moment, the bytes that come from
// the program are a batch, and those that come back are its answer.
type cutter struct {
	ln       net.Listener
	network  string // of the database
	database string

	mu    sync.Mutex
	armed cut
	held  bool // no answer is passed on
	cuts  int
	onCut func()                // may be nil
	conns map[net.Conn]net.Conn // from the program; to the database
	left  map[net.Conn]bool     // to the database, which does not learn that the program is gone
}

type cut int

const (
	noCut      cut = iota
	cutRequest     // the request is not passed on
	cutAfter       // the request is passed on, its answer not awaited
	cutAnswer      // the answer has come, and is not passed on
)

// newCutter listens in front of the database of databaseURL and returns the
// DATABASE_URL that leads through it.
func newCutter(t testing.TB, databaseURL string) (*cutter, string) {
	t.Helper()
	cfg := connConfig(t, databaseURL)
	c := &cutter{conns: map[net.Conn]net.Conn{}, left: map[net.Conn]bool{}}
	c.network, c.database = pgconn.NetworkAddress(cfg.Host, cfg.Port)
	var err error
	c.ln, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go c.accept()
	t.Cleanup(func() {
		c.ln.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		for client, server := range c.conns {
			client.Close()
			server.Close()
		}
		for server := range c.left {
			server.Close()
		}
	})
	addr := c.ln.Addr().(*net.TCPAddr)
	through := url.URL{
		Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(addr.Port)),
		Path: "/" + cfg.Database, RawQuery: "sslmode=disable",
	}
	return c, through.String()
}

// arm has the next request cut.
func (c *cutter) arm(how cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = how
}

// hold has every answer withheld, or passed on again, while requests pass: the
// program learns nothing of its database.
func (c *cutter) hold(answers bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = answers
}

func (c *cutter) isHeld() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held
}

// done reports whether the armed cut was made.
func (c *cutter) done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.armed == noCut
}

// fire returns the armed cut and disarms it.
func (c *cutter) fire() cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	how := c.armed
	c.armed = noCut
	if how != noCut {
		c.cuts++
		if c.onCut != nil {
			c.onCut()
		}
	}
	return how
}

func (c *cutter) accept() {
	for {
		client, err := c.ln.Accept()
		if err != nil {
			return // the test is over
		}
		server, err := net.Dial(c.network, c.database)
		if err != nil {
			client.Close() // the database is away: so it seems to the program
			continue
		}
		c.mu.Lock()
		c.conns[client] = server
		c.mu.Unlock()
		go c.pass(client, server)
	}
}

// abandon cuts all connections off the program, while the database believes
// that it is still there: so a broken network looks.
func (c *cutter) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for client, server := range c.conns {
		c.left[server] = true
		delete(c.conns, client)
		client.Close()
	}
}

// cancelRequest is the length in bytes of the message that asks the database
// to stop what a broken connection was doing; the one that opens a connection
// is longer. A network that breaks loses it as well.
const cancelRequest = 16

// pass relays a connection until either side ends or it is cut.
func (c *cutter) pass(client, server net.Conn) {
	withhold := make(chan struct{}) // closed: the answer is not to be passed on
	answered := make(chan struct{}) // closed: no more answers
	go func() {
		defer close(answered)
		defer client.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := server.Read(buf)
			select {
			case <-withhold:
				return
			default:
			}
			if n > 0 && !c.isHeld() {
				if _, werr := client.Write(buf[:n]); werr != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 32<<10)
	for first := true; ; first = false {
		n, err := client.Read(buf)
		how := noCut
		if first && n == cancelRequest {
			break
		}
		if n > 0 {
			if how = c.fire(); how == cutRequest {
				break
			}
			if how == cutAnswer {
				close(withhold)
			}
			if _, werr := server.Write(buf[:n]); werr != nil {
				break
			}
		}
		if how == cutAnswer {
			<-answered
		}
		if how != noCut || err != nil {
			break
		}
	}
	client.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, client)
	if !c.left[server] {
		server.Close()
	}
}

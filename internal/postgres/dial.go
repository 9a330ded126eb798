// Package postgres connects to PostgreSQL, to one of several hosts of which some may
// be dead or to one that is far away, and says what its errors mean.
package postgres

import (
	"context"
	"database/sql/driver"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// Without a connect_timeout in DATABASE_URL: where it names several hosts, a
// dead one must leave time for the next within the wait of a visit; a single
// one that swallows packets must not let a start hang for the two minutes that
// the kernel tries (tcp(7), tcp_syn_retries).
const (
	eachTimeout   = 500 * time.Millisecond
	singleTimeout = 5 * time.Second
	limit         = 30 * time.Second // of an attempt, however many hosts there are
	// So many attempts may be under way: a database that is slow to answer would
	// get one for each visit that waits, and answer none of them.
	atOnce = 4
)

// SetTimeouts gives a configuration its timeouts, unless the URL has one.
func SetTimeouts(cfg *pgx.ConnConfig) {
	if cfg.ConnectTimeout != 0 {
		return
	}
	// Of a name's addresses a dead one must leave time for the next.
	cfg.DialFunc = (&net.Dialer{Timeout: eachTimeout}).DialContext
	cfg.ConnectTimeout = singleTimeout
	// A fallback may be the same host without TLS (sslmode=prefer).
	if slices.ContainsFunc(cfg.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != cfg.Host || f.Port != cfg.Port }) {
		cfg.ConnectTimeout = eachTimeout
	}
}

// Dialer is a connector that works in the background: a database far away may
// need longer for its first byte than the visit waits that asked for the
// connection. The next visit gets what comes of it.
type Dialer struct {
	driver.Connector
	lifetime time.Duration
	made     chan dialed
	begun    chan struct{}   // holds one for each attempt that nobody has the connection of yet
	patient  atomic.Bool     // eachTimeout was too short
	ctx      context.Context // done: closed
	close    context.CancelFunc
}

type dialed struct {
	conn driver.Conn
	took time.Duration
}

// New returns a connector for a pool whose connections end after lifetime. ready
// makes each of them fit for use.
func New(cfg *pgx.ConnConfig, lifetime time.Duration, ready func(context.Context, *pgx.Conn) error) *Dialer {
	d := newDialer(nil, lifetime)
	d.Connector = stdlib.GetConnector(*cfg, stdlib.OptionAfterConnect(ready),
		stdlib.OptionBeforeConnect(func(_ context.Context, cfg *pgx.ConnConfig) error {
			if cfg.ConnectTimeout == eachTimeout && d.patient.Load() {
				cfg.ConnectTimeout = singleTimeout
			}
			return nil
		}))
	return d
}

func newDialer(c driver.Connector, lifetime time.Duration) *Dialer {
	d := &Dialer{Connector: c, lifetime: lifetime, made: make(chan dialed), begun: make(chan struct{}, atOnce)}
	d.ctx, d.close = context.WithCancel(context.Background())
	return d
}

// Connect returns a connection that was begun, or waits for one until ctx is done.
func (d *Dialer) Connect(ctx context.Context) (driver.Conn, error) {
	var c dialed
	ended, begin := make(chan error, 1), d.begun
	for c.took == 0 {
		select {
		case c = <-d.made: // before another attempt
			continue
		default:
		}
		select {
		case c = <-d.made:
		case begin <- struct{}{}:
			begin = nil
			go d.dial(ended)
		case err := <-ended:
			if err != nil {
				return nil, err
			}
			begin = d.begun // another one has taken the connection
		case <-ctx.Done():
			return nil, fmt.Errorf("still connecting: %w", context.Cause(ctx))
		}
	}
	if c.took > 100*time.Millisecond { // its successor is to be there when it ends
		time.AfterFunc(d.lifetime-3*c.took, func() {
			d.begun <- struct{}{}
			d.dial(make(chan error, 1))
		})
	}
	return c.conn, nil
}

// dial makes a connection for whoever asks first, and then says in ended, which
// needs room for it, what came of it.
func (d *Dialer) dial(ended chan<- error) {
	ctx, cancel := context.WithTimeout(d.ctx, limit)
	defer cancel()
	start := time.Now()
	conn, err := d.Connector.Connect(ctx)
	took := max(1, time.Since(start))
	d.patient.Store(pgconn.Timeout(err) || err == nil && took > eachTimeout)
	if err == nil {
		select {
		case d.made <- dialed{conn, took}:
		case <-time.After(d.lifetime):
			conn.Close()
		case <-d.ctx.Done():
			conn.Close()
		}
	}
	<-d.begun
	ended <- err
}

// Close is called by the pool's.
func (d *Dialer) Close() error {
	d.close()
	return nil
}

package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// heldConnector makes no connection before it is told what comes of it.
type heldConnector struct{ calls chan chan error }

func (h heldConnector) Connect(context.Context) (driver.Conn, error) {
	outcome := make(chan error)
	h.calls <- outcome
	return unusedConn{}, <-outcome
}

// unusedConn is a connection that is closed and nothing else.
type unusedConn struct{ driver.Conn }

func (unusedConn) Close() error { return nil }

func (h heldConnector) Driver() driver.Driver { return nil }

// Two wait, the second one's connection comes first and goes to the first one,
// whose own then fails. The second one must not wait forever: it may be the
// pool itself, which would never connect again.
func TestConnectionThatAnotherOneTook(t *testing.T) {
	t.Parallel()
	for range 50 {
		h := heldConnector{make(chan chan error)}
		d := newDialer(h, time.Minute)
		t.Cleanup(d.close)
		ended := make(chan error, 2)
		var outcomes [2]chan error
		for i := range outcomes {
			go func() {
				_, err := d.Connect(context.Background())
				ended <- err
			}()
			outcomes[i] = <-h.calls
		}
		outcomes[1] <- nil
		require.NoError(t, <-ended)
		outcomes[0] <- errors.New("refused")
		select {
		case <-ended: // it was the one that was refused
		case again := <-h.calls:
			again <- nil
			require.NoError(t, <-ended)
		case <-time.After(10 * time.Second):
			require.FailNow(t, "waits forever")
		}
	}
}

// A database that is slow to answer does not get one more connection for each
// visit that waits for it: so many would keep it from answering.
func TestFewConnectionsAreBegunAtOnce(t *testing.T) {
	t.Parallel()
	h := heldConnector{make(chan chan error, 100)}
	d := newDialer(h, time.Minute)
	t.Cleanup(d.close)
	short := func() (driver.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		defer cancel()
		return d.Connect(ctx)
	}
	for range 20 {
		_, err := short()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.Len(t, h.calls, atOnce)
	(<-h.calls) <- errors.New("refused")
	eventually := time.Now().Add(10 * time.Second)
	for len(h.calls) < atOnce && time.Now().Before(eventually) {
		short()
	}
	require.Len(t, h.calls, atOnce, "another one after one has failed")
	for range atOnce {
		(<-h.calls) <- nil
	}
	_, err := d.Connect(context.Background())
	require.NoError(t, err, "who comes later gets what was begun before")
}

package connect

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
	return nil, <-outcome
}

func (h heldConnector) Driver() driver.Driver { return nil }

// Two wait, the second one's connection comes first and goes to the first one,
// whose own then fails. The second one must not wait forever: it may be the
// pool itself, which would never connect again.
func TestConnectionThatAnotherOneTook(t *testing.T) {
	t.Parallel()
	for range 50 {
		h := heldConnector{make(chan chan error)}
		d := &Dialer{Connector: h, lifetime: time.Minute, made: make(chan dialed)}
		d.ctx, d.close = context.WithCancel(context.Background())
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

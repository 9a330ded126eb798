package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Refusal is a state of the database that only a person can fix: trying again
// does not help.
type Refusal struct{ msg string }

func (r *Refusal) Error() string { return r.msg }

// Refuse returns a [*Refusal].
func Refuse(format string, args ...any) error { return &Refusal{fmt.Sprintf(format, args...)} }

// ErrUnconfirmed: the server has committed, and may have done so without its standby.
var ErrUnconfirmed = errors.New("not confirmed")

// Retryable reports whether what failed may succeed when it is tried again.
// Sending a batch again is safe in any case; this only saves visitors a
// pointless wait. The codes are in appendix A of PostgreSQL's manual.
func Retryable(err error) bool {
	if _, refused := errors.AsType[*Refusal](err); refused {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return errors.Is(err, ErrUnconfirmed) || connectionFailed(err)
	}
	switch pg.Code {
	case "", // a proxy's own words
		"25006", // read_only_sql_transaction: the old primary after a switch-over
		"26000", // invalid_sql_statement_name: a pooler gave us another backend
		"55P03", // lock_not_available
		"57014", // query_canceled, by an administrator or a statement_timeout
		"XX000": // internal_error: the code of Supavisor's and Neon's proxies for passing trouble
		return true
	case "0A000": // feature_not_supported
		return pg.Routine == "RevalidateCachedQuery" // a column's type changed under a prepared statement
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "08", // connection exception
		"40", // transaction rollback: deadlock, serialization
		"53", // insufficient resources
		"57", // operator intervention: shutdown, crash, starting up
		"58": // system error
		return true
	}
	return false
}

// connectionFailed reports whether err says that a connection broke, or could
// not be made in time. An answer that the driver cannot read says neither.
func connectionFailed(err error) bool {
	_, network := errors.AsType[net.Error](err)
	_, connect := errors.AsType[*pgconn.ConnectError](err)
	return network || connect || pgconn.SafeToRetry(err) || slices.ContainsFunc([]error{
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, driver.ErrBadConn, sql.ErrConnDone, context.DeadlineExceeded, context.Canceled,
	}, func(target error) bool { return errors.Is(err, target) })
}

// MaxConns is the most connections of any pool.
const MaxConns = 4

// Repeat runs a statement that may run twice. After a restart of the database
// each connection of a pool may be a dead one, which shows only in use.
func Repeat(ctx context.Context, query func() error) error {
	err := query()
	for range MaxConns {
		if err == nil || ctx.Err() != nil || !Retryable(err) {
			break
		}
		err = query()
	}
	return err
}

// IsUndefined reports whether err is PostgreSQL's undefined_table or undefined_column.
func IsUndefined(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "42P01" || pg.Code == "42703")
}

// Explain words a failed connection in one sentence without the password; other
// errors it returns as they are. The driver's own error has a line for each address
// that it tried; the first says enough, unless a server answered: that one is the last.
func Explain(err error) error {
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return err
	}
	lines := strings.Split(failed.Error(), "\n\t")
	if _, answered := errors.AsType[*pgconn.PgError](err); answered {
		lines = append(lines[:1], lines[len(lines)-1])
	}
	return fmt.Errorf("DATABASE_URL: %s", strings.TrimSpace(strings.Join(lines[:min(2, len(lines))], " ")))
}

// Queryer is a *sql.DB, *sql.Conn or *sql.Tx.
type Queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

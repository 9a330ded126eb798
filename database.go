package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// explainConnect words a failed connection in one sentence without the
// password. The driver's own error has a line for each address that it tried; the
// first says enough, unless a server answered: that one is the last.
func explainConnect(err error) error {
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

// retryable reports whether what failed may succeed when it is tried again.
// Sending a batch again is safe in any case; this only spares the waiters a wait
// for nothing. The codes are in appendix A of PostgreSQL's manual.
func retryable(err error) bool {
	if _, refused := errors.AsType[*refusal](err); refused {
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return true // no answer of the server: the connection broke, or could not be made
	}
	switch pg.Code {
	case "25006", // read_only_sql_transaction: the old primary after a switch-over
		"26000", // invalid_sql_statement_name: a pooler gave us another backend
		"55P03", // lock_not_available
		"57014": // query_canceled, by an administrator or a statement_timeout
		return true
	}
	switch pg.Code[:2] {
	case "08", // connection exception
		"40", // transaction rollback: deadlock, serialization
		"53", // insufficient resources
		"57", // operator intervention: shutdown, crash, starting up
		"58": // system error
		return true
	}
	return false
}

// repeat runs a statement that may run twice. After a restart of the database
// each connection of a pool may be a dead one, which shows only in use.
func repeat(ctx context.Context, query func() error) error {
	err := query()
	for range maxReads {
		if err == nil || ctx.Err() != nil || !retryable(err) {
			break
		}
		err = query()
	}
	return err
}

// refusal is a state of the database that only a person can mend: trying again
// does not help.
type refusal struct{ msg string }

func (r *refusal) Error() string { return r.msg }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// queryer is a *sql.DB, *sql.Conn or *sql.Tx.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
)

func TestRetryable(t *testing.T) {
	t.Parallel()
	pg := func(code string) error { return fmt.Errorf("commit batch: %w", &pgconn.PgError{Code: code}) }
	tests := map[string]struct {
		err  error
		want bool
	}{
		"connection refused":         {&net.OpError{Op: "dial", Err: errors.New("refused")}, true},
		"connection broke":           {fmt.Errorf("commit batch: %w", io.ErrUnexpectedEOF), true},
		"no connection":              {sql.ErrConnDone, true},
		"connect_timeout":            {&net.OpError{Op: "dial", Err: context.DeadlineExceeded}, true},
		"refusal":                    {fmt.Errorf("migrate: %w", Refuse("changed")), false},
		"connection_failure":         {pg("08006"), true},
		"pgbouncer gave up":          {pg("08P01"), true},
		"read_only_sql_transaction":  {pg("25006"), true},
		"invalid_statement_name":     {pg("26000"), true},
		"serialization_failure":      {pg("40001"), true},
		"deadlock_detected":          {pg("40P01"), true},
		"disk_full":                  {pg("53100"), true},
		"too_many_connections":       {pg("53300"), true},
		"lock_not_available":         {pg("55P03"), true},
		"query_canceled":             {pg("57014"), true},
		"admin_shutdown":             {pg("57P01"), true},
		"crash_shutdown":             {pg("57P02"), true},
		"cannot_connect_now":         {pg("57P03"), true},
		"io_error":                   {pg("58030"), true},
		"wrong password":             {pg("28P01"), false},
		"no such database":           {pg("3D000"), false},
		"check_violation":            {pg("23514"), false},
		"undefined_table":            {pg("42P01"), false},
		"insufficient_privilege":     {pg("42501"), false},
		"numeric_value_out_of_range": {pg("22003"), false},
		"a proxy's internal_error":   {pg("XX000"), true},
		"a proxy's error, no code":   {pg(""), true},
		"half a code":                {pg("5"), false},
		"statement no longer fits":   {&pgconn.PgError{Code: "0A000", Routine: "RevalidateCachedQuery"}, true},
		"feature_not_supported":      {pg("0A000"), false},
		"a warning":                  {fmt.Errorf("commit batch: %w: canceled", ErrUnconfirmed), true},
		"deadline":                   {fmt.Errorf("timeout: %w", context.DeadlineExceeded), true},
		"no row":                     {fmt.Errorf("read the totals: %w", sql.ErrNoRows), false},
		"an answer not understood":   {errors.New("can't scan into dest[1]: invalid PostgreSQL date/time value"), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tt.want, Retryable(tt.err))
		})
	}
}

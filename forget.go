package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
)

// forgetCommand removes what is kept of the visitor with this address, in any
// form that a proxy writes. No message holds the address.
func forgetCommand(ctx context.Context, cfg config, out io.Writer, address string) error {
	addr, ok := parseAddr(address)
	if !ok {
		return &usageError{errors.New("forget wants one address, such as 192.0.2.7 or 2001:db8::7, as its argument or on standard input")}
	}
	store := openStore(cfg.Database)
	defer store.close()
	done, err := appliedMigrations(ctx, store.reads)
	if err != nil {
		return err
	}
	if needs := len(ourMigrations()); len(done) < needs {
		return fmt.Errorf("%s, or look at the database's name in DATABASE_URL", behind(len(done), needs))
	}
	h, _, err := findKey(ctx, store.reads, cfg.VisitorKey)
	if err != nil {
		return err
	}
	visits, err := store.forget(ctx, h.visitor(addr))
	if err != nil {
		return err
	}
	if visits == 0 {
		_, err = fmt.Fprintln(out, "nothing is kept of this visitor")
	} else {
		number := group(visits)
		_, err = fmt.Fprintf(out, "forgotten: a visitor with %s %s; the totals stay as they are\n", number, plural(number, "visit"))
	}
	return err
}

// readAddress returns the first line of in: a command line can be in logs, such as sudo's.
func readAddress(in io.Reader) (string, error) {
	const longest = 100 // bytes, of an address in any form
	line, err := bufio.NewReader(io.LimitReader(in, longest)).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = nil // a line without an end
	}
	return line, err
}

// forget removes the row of a visitor and returns its visits; 0: there was none.
// Totals and days keep them, and how many visitors they have without a row. Like
// a batch it locks the visitor, then the days, then the totals.
func (s *store) forget(ctx context.Context, id visitorID) (visits int64, err error) {
	err = repeat(ctx, func() error {
		return s.reads.QueryRowContext(ctx, `
			WITH gone AS (
				DELETE FROM visitors
				WHERE id = $1::bytea
				RETURNING visits, first_seen, last_seen, seen_day_before
			), of_days AS (
				UPDATE days SET
					forgotten     = forgotten + (day = last_seen OR day = last_seen - 1 AND seen_day_before)::int,
					forgotten_new = forgotten_new + COALESCE(day = first_seen, false)::int
				FROM gone
				WHERE day IN (first_seen, last_seen, last_seen - 1)
				RETURNING day
			)
			UPDATE totals SET
				forgotten_visits   = forgotten_visits + gone.visits,
				forgotten_visitors = forgotten_visitors + 1
			FROM gone, (SELECT count(*) FROM of_days) AS after_days
			RETURNING gone.visits`, id[:]).Scan(&visits)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("forget a visitor: %w", err)
	}
	return visits, nil
}

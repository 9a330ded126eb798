//go:build ignore

// A visit is one transaction of SQLite in a file, in WAL mode, durable before it is
// answered: synchronous is FULL.
package main

import (
	"context"
	"database/sql"
	"os"

	_ "modernc.org/sqlite"

	"footfall/internal/visitor"
)

func openVariant(*store) func(context.Context, visitor.ID) (counted, error) {
	db, err := sql.Open("sqlite", os.Getenv("SQLITE")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate")
	if err != nil {
		panic(err)
	}
	db.SetMaxOpenConns(1) // there is one writer at a time
	if _, err := db.Exec(`
		CREATE TABLE IF NOT EXISTS visitors (id BLOB PRIMARY KEY, visits INTEGER NOT NULL) WITHOUT ROWID;
		CREATE TABLE IF NOT EXISTS totals (visits INTEGER NOT NULL, visitors INTEGER NOT NULL);
		INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals)`); err != nil {
		panic(err)
	}
	return func(ctx context.Context, id visitor.ID) (c counted, err error) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return c, err
		}
		defer tx.Rollback() // does nothing after Commit
		if err := tx.QueryRowContext(ctx, `
			INSERT INTO visitors VALUES (?, 1)
			ON CONFLICT (id) DO UPDATE SET visits = visits + 1
			RETURNING visits`, id[:]).Scan(&c.number); err != nil {
			return c, err
		}
		if err := tx.QueryRowContext(ctx, `
			UPDATE totals SET visits = visits + 1, visitors = visitors + (? = 1)
			RETURNING visits, visitors`, c.number).Scan(&c.visits, &c.visitors); err != nil {
			return c, err
		}
		return c, tx.Commit()
	}
}

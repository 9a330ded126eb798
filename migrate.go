package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed sql/*.sql
var embedded embed.FS

// migrateKey is the advisory lock that whoever changes the schema holds: the
// first eight bytes of SHA-256("footfall"). Advisory locks are per database.
const migrateKey = 0x38472b5c42202c47

// migrateLockTimeout bounds the wait for another process's migration and for
// any table that a migration needs.
const migrateLockTimeout = "60s"

// migration is one file of sql/.
type migration struct {
	version  int
	name     string // file name, 0001_count.sql
	checksum string // SHA-256 of the file in hex
	sql      string
}

// applied is one row of schema_migrations.
type applied struct {
	version   int
	name      string
	checksum  string
	appliedAt time.Time
}

var (
	migrationName = regexp.MustCompile(`^(\d{4})_[a-z0-9_]+\.sql$`)
	// endsTransaction finds most files that would end the transaction they run
	// in before anything is run; applyMigration catches the rest.
	endsTransaction = regexp.MustCompile(`(?im)(^|;)\s*(COMMIT|ROLLBACK|ABORT)\b`)
)

// loadMigrations reads the migrations of a folder in order, and refuses names
// that are not NNNN_what.sql, gaps and numbers that occur twice.
func loadMigrations(fsys fs.FS) ([]migration, error) {
	entries, err := fs.ReadDir(fsys, ".") // sorted by name, so by number
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	var ms []migration
	for _, entry := range entries {
		name := entry.Name()
		match := migrationName.FindStringSubmatch(name)
		if match == nil {
			return nil, fmt.Errorf("migration %q: name it NNNN_what_it_does.sql", name)
		}
		version, _ := strconv.Atoi(match[1]) // four digits, says the pattern
		want := len(ms) + 1
		if version < want {
			return nil, fmt.Errorf("migration %s: number %04d is taken by %s, renumber one of them", name, version, ms[len(ms)-1].name)
		}
		if version > want {
			return nil, fmt.Errorf("migration %s: %04d is missing, number the files without gaps", name, want)
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read migration %s: %w", name, err)
		}
		if endsTransaction.Match(text) {
			return nil, fmt.Errorf("migration %s ends its transaction: remove COMMIT or ROLLBACK, all files are applied in one", name)
		}
		sum := sha256.Sum256(text)
		ms = append(ms, migration{version, name, hex.EncodeToString(sum[:]), string(text)})
	}
	return ms, nil
}

// ourMigrations are the embedded ones. That they load is tested.
func ourMigrations() []migration {
	sub, err := fs.Sub(embedded, "sql")
	if err != nil {
		panic(err)
	}
	ms, err := loadMigrations(sub)
	if err != nil {
		panic(err)
	}
	return ms
}

// migrateResult tells what a run of migrate did.
type migrateResult struct {
	ran     []migrationRun
	unknown int // migrations in the database that this program does not have: the database is newer
}

type migrationRun struct {
	name string
	took time.Duration
}

// migrate applies all pending migrations in one transaction that takes the
// advisory lock before it looks at anything: processes started together wait
// for one another, a failing file leaves nothing behind, and the lock cannot
// leak into a connection pool. A database that is ahead of ms is fine as long
// as the files that both know are the same.
func migrate(ctx context.Context, db *sql.DB, ms []migration) (migrateResult, error) {
	return migrateWithin(ctx, db, ms, migrateLockTimeout)
}

// migrateWithin is migrate with a lock_timeout of its own.
func migrateWithin(ctx context.Context, db *sql.DB, ms []migration, lockTimeout string) (migrateResult, error) {
	var result migrateResult
	err := underMigrationLock(ctx, db, lockTimeout, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `
			CREATE TABLE IF NOT EXISTS schema_migrations (
				version    integer     PRIMARY KEY,
				name       text        NOT NULL,
				checksum   text        NOT NULL, -- SHA-256 of the file
				applied_at timestamptz NOT NULL DEFAULT now()
			)`); err != nil {
			return fmt.Errorf("create schema_migrations: %w", err)
		}
		done, err := appliedMigrations(ctx, tx)
		if err != nil {
			return err
		}
		if err := compareMigrations(ms, done); err != nil {
			return err
		}
		result.unknown = max(0, len(done)-len(ms))
		for _, m := range ms[min(len(done), len(ms)):] {
			start := time.Now()
			if err := applyMigration(ctx, tx, m); err != nil {
				return err
			}
			result.ran = append(result.ran, migrationRun{m.name, time.Since(start)})
		}
		return nil
	})
	if err != nil {
		return migrateResult{}, fmt.Errorf("migrate: %w", err)
	}
	return result, nil
}

// underMigrationLock runs change in a transaction that holds the advisory lock
// until it ends. lockTimeout bounds each wait for a lock.
func underMigrationLock(ctx context.Context, db *sql.DB, lockTimeout string, change func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '`+lockTimeout+`'`); err != nil {
		return fmt.Errorf("set lock_timeout: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(migrateKey)); err != nil {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "55P03" { // lock_not_available
			return fmt.Errorf("another process has been migrating this database for %s; wait for it, or look for it in pg_stat_activity: %w", lockTimeout, err)
		}
		return fmt.Errorf("take the migration lock: %w", err)
	}
	if err := change(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// applyMigration runs one file and records it.
func applyMigration(ctx context.Context, tx *sql.Tx, m migration) error {
	var before, after string
	if err := tx.QueryRowContext(ctx, `SELECT pg_current_xact_id()::text`).Scan(&before); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	// Without arguments the driver sends the file as it is, all statements.
	if _, err := tx.ExecContext(ctx, m.sql); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	// A COMMIT or ROLLBACK in the file has ended our transaction, and the lock
	// with it. What the file did before stands; nothing after it does.
	if err := tx.QueryRowContext(ctx, `SELECT pg_current_xact_id()::text`).Scan(&after); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	if before != after {
		return fmt.Errorf("%s ends the transaction: remove COMMIT or ROLLBACK from it, and undo by hand what it did", m.name)
	}
	if _, err := tx.ExecContext(ctx, `
		INSERT INTO schema_migrations (version, name, checksum)
		VALUES ($1, $2, $3)`,
		m.version, m.name, m.checksum); err != nil {
		return fmt.Errorf("record %s: %w", m.name, err)
	}
	return nil
}

// queryer is a *sql.DB, *sql.Conn or *sql.Tx.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// appliedMigrations lists what the database has, in order; nothing when it was
// never migrated.
func appliedMigrations(ctx context.Context, q queryer) ([]applied, error) {
	var exists bool
	if err := q.QueryRowContext(ctx, `SELECT to_regclass('schema_migrations') IS NOT NULL`).Scan(&exists); err != nil {
		return nil, fmt.Errorf("look for schema_migrations: %w", err)
	}
	if !exists {
		return nil, nil
	}
	rows, err := q.QueryContext(ctx, `
		SELECT version, name, checksum, applied_at
		FROM schema_migrations
		ORDER BY version`)
	if err != nil {
		return nil, fmt.Errorf("read schema_migrations: %w", err)
	}
	defer rows.Close()
	var done []applied
	for rows.Next() {
		var a applied
		if err := rows.Scan(&a.version, &a.name, &a.checksum, &a.appliedAt); err != nil {
			return nil, fmt.Errorf("read schema_migrations: %w", err)
		}
		done = append(done, a)
	}
	return done, rows.Err()
}

// compareMigrations refuses a database whose history is not ours.
func compareMigrations(ms []migration, done []applied) error {
	for i, a := range done {
		if a.version != i+1 {
			return fmt.Errorf("schema_migrations lacks version %d: restore the row or the database", i+1)
		}
		if i >= len(ms) {
			continue // newer than the program
		}
		if m := ms[i]; a.checksum != m.checksum {
			return fmt.Errorf("%s was changed after it was applied on %s (as %s): put the released file back and make the change in a new one",
				m.name, a.appliedAt.UTC().Format(time.DateOnly), a.name)
		}
	}
	return nil
}

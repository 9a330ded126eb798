package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"sync"
	"time"

	"footfall/internal/original"
	"footfall/internal/postgres"
	"footfall/internal/visitor"

	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed sql/*.sql
var embedded embed.FS

// migrateKey is the advisory lock of a process that changes the schema: the
// first eight bytes of SHA-256("footfall"). Advisory locks are per database.
const migrateKey = 0x38472b5c42202c47

// Waits of a process that changes the schema.
const (
	// migrateLimit bounds the wait for another process's migration, and for
	// tables in use.
	migrateLimit = time.Minute
	// While a migration waits for a table, every later statement on that table
	// queues behind it, so the wait is a fraction of visitTimeout.
	tableLockTimeout = 500 * time.Millisecond
	tableLockPause   = time.Second // between two tries: lets queued statements run
)

// migration is one file of sql/.
type migration struct {
	version  int
	name     string // file name, 0001_count.sql
	checksum string // SHA-256 of the file in hex
	sql      string
	took     time.Duration // once it was applied
}

// applied is one row of schema_migrations.
type applied struct {
	version   int
	name      string
	checksum  string
	appliedAt time.Time
}

// loadMigrations returns the migrations in a directory sql, in order. A test looks
// after the embedded ones: NNNN_what_it_does.sql, numbered from 1 without gaps.
func loadMigrations(fsys fs.FS) (ms []migration) {
	names, _ := fs.Glob(fsys, "sql/*.sql") // sorted, so by number; the pattern is right
	for i, name := range names {
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			panic(err) // it is in the program
		}
		text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")) // a checkout's line ends are not the file's
		sum := sha256.Sum256(text)
		ms = append(ms, migration{version: i + 1, name: path.Base(name), checksum: hex.EncodeToString(sum[:]), sql: string(text)})
	}
	return ms
}

// ourMigrations are the embedded ones.
var ourMigrations = sync.OnceValue(func() []migration { return loadMigrations(embedded) })

// migrate applies all pending migrations in tx, which holds the migration lock:
// processes started together wait for one another, and a failing file leaves
// nothing behind. A database that is ahead of ms is fine as long as the files
// that both know are the same.
func migrate(ctx context.Context, tx *sql.Tx, ms []migration) (ran []migration, err error) {
	if _, err := tx.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS schema_migrations (
			version    integer     PRIMARY KEY,
			name       text        NOT NULL,
			checksum   text        NOT NULL, -- SHA-256 of the file
			applied_at timestamptz NOT NULL DEFAULT now()
		)`); err != nil {
		return nil, fmt.Errorf("create schema_migrations: %w", err)
	}
	done, err := appliedMigrations(ctx, tx)
	if err != nil {
		return nil, err
	}
	if err := compareMigrations(ms, done); err != nil {
		return nil, err
	}
	for _, m := range ms[min(len(done), len(ms)):] {
		start := time.Now()
		// Without arguments the driver sends the file as it is, all statements.
		_, err := tx.ExecContext(ctx, m.sql)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42P07" { // duplicate_table
			return nil, postgres.Refuse("%s: %s: "+anotherProgram, m.name, pg.Message, "of that name")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		if _, err := tx.ExecContext(ctx, `
			INSERT INTO schema_migrations (version, name, checksum)
			VALUES ($1, $2, $3)`,
			m.version, m.name, m.checksum); err != nil {
			return nil, fmt.Errorf("record %s: %w", m.name, err)
		}
		m.took = time.Since(start)
		ran = append(ran, m)
	}
	return ran, nil
}

// underMigrationLock runs change in a transaction that holds the advisory lock
// until it ends; so the lock cannot leak into a connection pool. When a table
// that change needs is in use, the whole transaction is rolled back and tried
// again after a pause, for limit in all.
func underMigrationLock(ctx context.Context, db *sql.DB, limit time.Duration, change func(*sql.Tx) error) error {
	for deadline := time.Now().Add(limit); ; {
		// Never 0, which would be no timeout at all.
		err := tryUnderMigrationLock(ctx, db, max(time.Until(deadline), time.Millisecond), change)
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pg.Code != "55P03" && pg.Code != "40P01" { // lock_not_available, deadlock_detected
			return err
		}
		if time.Until(deadline) < tableLockPause {
			return fmt.Errorf("gave up after %s; look in pg_stat_activity for what holds the lock: %w", limit, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(tableLockPause):
		}
	}
}

func tryUnderMigrationLock(ctx context.Context, db *sql.DB, wait time.Duration, change func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	// A role's own limits would end a long migration or import, and each start
	// would begin it again. transaction_timeout came with PostgreSQL 17.
	if _, err := tx.ExecContext(ctx, `
		SELECT set_config(name, '0', true)
		FROM pg_settings
		WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')`); err != nil {
		return fmt.Errorf("lift the role's time limits: %w", err)
	}
	// Without arguments the driver sends all three at once.
	lock := fmt.Sprintf(`
		SET LOCAL lock_timeout = %d;
		SELECT pg_advisory_xact_lock(%d);
		SET LOCAL lock_timeout = %d`, wait.Milliseconds(), int64(migrateKey), tableLockTimeout.Milliseconds())
	if _, err := tx.ExecContext(ctx, lock); err != nil {
		return fmt.Errorf("wait for another process that is migrating this database: %w", err)
	}
	if err := change(tx); err != nil {
		return err
	}
	return tx.Commit()
}

const anotherProgram = "the table %s belongs to another program: give footfall a database of its own, or a schema, with ?search_path=NAME in DATABASE_URL"

// appliedMigrations lists what the database has, in order; nothing when it was
// never migrated.
func appliedMigrations(ctx context.Context, q postgres.Queryer) ([]applied, error) {
	var columns int
	if err := q.QueryRowContext(ctx, `
		SELECT CASE WHEN to_regclass('schema_migrations') IS NULL THEN 0 ELSE 1 + count(*) END
		FROM pg_attribute
		WHERE attrelid = to_regclass('schema_migrations') AND NOT attisdropped
			AND attname IN ('version', 'name', 'checksum', 'applied_at')`).Scan(&columns); err != nil {
		return nil, fmt.Errorf("look for schema_migrations: %w", err)
	}
	if columns == 0 { // no table
		return nil, nil
	}
	if columns < 5 {
		return nil, postgres.Refuse(anotherProgram, "schema_migrations")
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

// behind words that a database has fewer migrations than this program.
func behind(has, needs int) string {
	return fmt.Sprintf("the schema is at version %d, this program needs %d: run footfall migrate", has, needs)
}

// compareMigrations refuses a database whose history is not ours.
func compareMigrations(ms []migration, done []applied) error {
	for i, a := range done {
		switch {
		case a.version != i+1:
			return postgres.Refuse("schema_migrations lacks version %d: restore the row or the database", i+1)
		case i < len(ms) && a.checksum != ms[i].checksum: // others are newer than the program
			return postgres.Refuse("%s was changed after it was applied on %s (as %s): put the released file back and make the change in a new one",
				ms[i].name, a.appliedAt.UTC().Format(time.DateOnly), a.name)
		}
	}
	return nil
}

// lookTimeout bounds the reads of a start: behind a locked table, or a proxy
// that swallows a query, the next try may find a way through.
const lookTimeout = 5 * time.Second

// isPrepared returns the hasher of a database that needs no change; false: it does.
func isPrepared(ctx context.Context, db *sql.DB, key []byte, ms []migration, log *slog.Logger) (visitor.Hasher, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	done, err := appliedMigrations(ctx, db)
	if err == nil {
		err = compareMigrations(ms, done)
	}
	if err != nil {
		return visitor.Hasher{}, false, fmt.Errorf("migrate: %w", err)
	}
	switch unknown := len(done) - len(ms); {
	case unknown > 0:
		log.Warn("the database is newer than this program", "unknown_migrations", unknown)
	case unknown < 0:
		return visitor.Hasher{}, false, nil
	}
	h, found, err := findKey(ctx, db, key)
	if err != nil {
		return visitor.Hasher{}, false, err
	}
	pending, err := original.Pending(ctx, db)
	return h, found && !pending, err
}

// prepareDatabase brings the database to where counting can begin: migrated, with its
// visitor key, and with the visitors of the original imported. Where nothing
// of that is pending it takes no lock and writes nothing.
func prepareDatabase(ctx context.Context, db *sql.DB, key []byte, log *slog.Logger) (visitor.Hasher, error) {
	ms := ourMigrations()
	if h, ok, err := isPrepared(ctx, db, key, ms, log); ok || err != nil {
		return h, err
	}
	var h visitor.Hasher
	var ran []migration
	var report original.Report
	err := underMigrationLock(ctx, db, migrateLimit, func(tx *sql.Tx) (err error) {
		if ran, err = migrate(ctx, tx, ms); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
		var found bool
		if h, found, err = findKey(ctx, tx, key); err == nil && !found {
			h, err = makeKey(ctx, tx, key)
		}
		if err != nil {
			return err
		}
		report, err = original.Import(ctx, tx, h)
		return err
	})
	if err != nil {
		return visitor.Hasher{}, err
	}
	for _, m := range ran {
		log.Info("migrated", "file", m.name, "ms", m.took.Milliseconds())
	}
	report.Log(log)
	return h, nil
}

// Names in the table settings.
const (
	settingKey         = "visitor_key"             // hex; only where none is configured
	settingFingerprint = "visitor_key_fingerprint" // of the key in use, wherever it is kept
)

// readKey returns the fingerprint of the visitor key in use, and the key where the
// database keeps it, both in hex; "" for what is not there.
func readKey(ctx context.Context, q postgres.Queryer) (fingerprint, kept string, err error) {
	err = q.QueryRowContext(ctx, `
		SELECT COALESCE(max(value) FILTER (WHERE name = $1), ''), COALESCE(max(value) FILTER (WHERE name = $2), '')
		FROM settings`, settingFingerprint, settingKey).Scan(&fingerprint, &kept)
	if err != nil {
		err = fmt.Errorf("read the visitor key: %w", err)
	}
	return fingerprint, kept, err
}

// findKey returns the hasher of a database that has been counted with a key, and
// false for a database without one. The key is the configured one, or the one
// that the database keeps. Another key than before would count every visitor a
// second time, so it is refused.
func findKey(ctx context.Context, q postgres.Queryer, configured []byte) (visitor.Hasher, bool, error) {
	fingerprint, kept, err := readKey(ctx, q)
	if err != nil || fingerprint == "" {
		return visitor.Hasher{}, false, err
	}
	key := configured
	if configured == nil {
		if kept == "" {
			return visitor.Hasher{}, false, postgres.Refuse("VISITOR_KEY is not set, but this database was counted with one (fingerprint %s): set it again, any other would count every visitor a second time", fingerprint)
		}
		if key, err = hex.DecodeString(kept); err != nil {
			return visitor.Hasher{}, false, postgres.Refuse("the visitor key kept in the database is damaged: restore table settings from a backup")
		}
	}
	h := visitor.NewHasher(key)
	if h.Fingerprint() != fingerprint {
		return visitor.Hasher{}, false, postgres.Refuse("VISITOR_KEY has the fingerprint %s, but this database was counted with %s: set the earlier key again, this one would count every visitor a second time", h.Fingerprint(), fingerprint)
	}
	return h, true, nil
}

// makeKey returns the hasher of a database without visitors: with the configured
// key, or with a random one that the database keeps.
func makeKey(ctx context.Context, tx *sql.Tx, configured []byte) (visitor.Hasher, error) {
	var counted bool
	if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM visitors)`).Scan(&counted); err != nil {
		return visitor.Hasher{}, fmt.Errorf("look for visitors: %w", err)
	}
	if counted {
		return visitor.Hasher{}, postgres.Refuse("the table settings has lost the visitor key, but there are visitors: restore it from a backup, as another key would count each of them a second time")
	}
	key := configured
	if key == nil {
		key = make([]byte, visitor.MinKey)
		rand.Read(key) // never fails
		if err := writeSetting(ctx, tx, settingKey, hex.EncodeToString(key)); err != nil {
			return visitor.Hasher{}, err
		}
	}
	h := visitor.NewHasher(key)
	return h, writeSetting(ctx, tx, settingFingerprint, h.Fingerprint())
}

func writeSetting(ctx context.Context, tx *sql.Tx, name, value string) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ($1, $2)`, name, value); err != nil {
		return fmt.Errorf("write setting %s: %w", name, err)
	}
	return nil
}

package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
)

// minVisitorKey is the least length of VISITOR_KEY in bytes: as long as the
// hash's output, below which HMAC gets weaker (RFC 2104, section 3).
const minVisitorKey = 32

// Names in the table settings.
const (
	settingKey         = "visitor_key"             // hex; only where none is configured
	settingFingerprint = "visitor_key_fingerprint" // of the key in use, wherever it is kept
)

// findKey returns the hasher of a database that has been counted with a key;
// false: not yet. The key is the configured one, or the one that the database
// keeps. Another key than before would count every visitor a second time, so it
// is refused.
func findKey(ctx context.Context, q queryer, configured []byte) (hasher, bool, error) {
	fingerprint, err := readSetting(ctx, q, settingFingerprint)
	if err != nil || fingerprint == "" {
		return hasher{}, false, err
	}
	h := hasher{configured}
	if configured == nil {
		kept, err := readSetting(ctx, q, settingKey)
		if err != nil {
			return hasher{}, false, err
		}
		if kept == "" {
			return hasher{}, false, refuse("VISITOR_KEY is not set, but this database was counted with one (fingerprint %s): set it again, any other would count every visitor a second time", fingerprint)
		}
		if h.key, err = hex.DecodeString(kept); err != nil {
			return hasher{}, false, refuse("the visitor key kept in the database is damaged: restore table settings from a backup")
		}
	}
	if h.fingerprint() != fingerprint {
		return hasher{}, false, refuse("VISITOR_KEY has the fingerprint %s, but this database was counted with %s: set the earlier key again, this one would count every visitor a second time", h.fingerprint(), fingerprint)
	}
	return h, true, nil
}

// makeKey returns the hasher of a database that is new: with the configured
// key, or with a random one that the database keeps.
func makeKey(ctx context.Context, tx *sql.Tx, configured []byte) (hasher, error) {
	h := hasher{configured}
	if configured == nil {
		h.key = make([]byte, minVisitorKey)
		rand.Read(h.key) // never fails
		if err := writeSetting(ctx, tx, settingKey, hex.EncodeToString(h.key)); err != nil {
			return hasher{}, err
		}
	}
	return h, writeSetting(ctx, tx, settingFingerprint, h.fingerprint())
}

// readSetting returns "" for a setting that is not there.
func readSetting(ctx context.Context, q queryer, name string) (string, error) {
	var value string
	err := q.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = $1`, name).Scan(&value)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read setting %s: %w", name, err)
	}
	return value, nil
}

func writeSetting(ctx context.Context, tx *sql.Tx, name, value string) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ($1, $2)`, name, value); err != nil {
		return fmt.Errorf("write setting %s: %w", name, err)
	}
	return nil
}

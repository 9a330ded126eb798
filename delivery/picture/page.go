package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"footfall/internal/devdb"
	"image"
	"image/draw"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"syscall"

	_ "github.com/jackc/pgx/v5/stdlib"
)

// makePage makes the README's pictures of the page: ./footfall serves it from a
// private database whose numbers are examples.
func makePage(ctx context.Context) (err error) {
	url, stop, err := serveExample(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for scheme, preferred := range map[string]string{"light": "1", "dark": "0"} {
		full, err := screenshot(ctx, url, "--window-size=1280,1400", "--blink-settings=preferredColorScheme="+preferred)
		if err != nil {
			return err
		}
		const bottom = 1090 // below the link to the table
		part := image.NewRGBA(image.Rect(0, 0, full.Bounds().Dx(), bottom))
		draw.Draw(part, part.Bounds(), full, image.Point{}, draw.Src)
		picture, err := encode(fewColors(part))
		if err != nil {
			return err
		}
		if err := os.WriteFile("docs/page-"+scheme+".png", picture, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// serveExample starts ./footfall on a private database of thirty days.
func serveExample(ctx context.Context) (url string, _ func() error, err error) {
	dir, err := os.MkdirTemp("", "picture")
	if err != nil {
		return "", nil, err
	}
	cluster, err := devdb.Start(ctx, dir)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop := func() error { return errors.Join(cluster.Stop(), os.RemoveAll(dir)) }
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	program := exec.CommandContext(ctx, "./footfall")
	program.Cancel = func() error { return program.Process.Signal(syscall.SIGTERM) }
	program.Env = append(os.Environ(), "DATABASE_URL="+cluster.URL("footfall"), "LISTEN_ADDR=127.0.0.1:0", "LOG_FORMAT=text",
		"USER_NAME=Ann Example", "USER_URL=https://example.org/")
	log, err := program.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := program.Start(); err != nil {
		return "", nil, err
	}
	databaseOnly := stop
	stop = func() error {
		return errors.Join(program.Process.Signal(syscall.SIGTERM), program.Wait(), databaseOnly())
	}
	lines := bufio.NewReader(log)
	for url == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			return "", nil, fmt.Errorf("footfall ended: %w", err)
		}
		if m := regexp.MustCompile(`addr=(127\.0\.0\.1:\d+)`).FindStringSubmatch(line); m != nil {
			url = "http://" + m[1] + "/"
		}
	}
	go io.Copy(io.Discard, lines)
	const visits = 11 // and the picture's makes 12
	for range visits {
		answer, err := http.Get(url)
		if err != nil {
			return "", nil, err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return "", nil, fmt.Errorf("%s: %s", url, answer.Status)
		}
	}
	example, err := sql.Open("pgx", cluster.URL("footfall"))
	if err != nil {
		return "", nil, err
	}
	defer example.Close()
	for _, statement := range []string{
		`INSERT INTO days (day, visits, visitors, new_visitors)
			SELECT (now() AT TIME ZONE 'UTC')::date - 30 + day::int, visits, visits * (45 + day * 7 % 20) / 100, visits / 4
			FROM unnest(ARRAY[31, 46, 112, 95, 50, 83, 121, 54, 61, 57, 48, 109, 120, 74, 96, 147, 105, 63, 187, 96, 99, 135, 91, 98, 162, 149, 85, 101, 136, 64])
				WITH ORDINALITY AS d (visits, day)
			ON CONFLICT (day) DO UPDATE SET visits = excluded.visits, visitors = excluded.visitors`,
		`UPDATE totals SET visits = 14901, visitors = 2318, since = '2026-03-01'`,
	} {
		if _, err := example.ExecContext(ctx, statement); err != nil {
			return "", nil, err
		}
	}
	return url, stop, nil
}

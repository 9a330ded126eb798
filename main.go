// Footfall is a page that counts its unique visitors exactly.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"footfall/internal/devdb"
	"footfall/internal/postgres"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal then kills at once
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	if err == nil {
		return
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(os.Stderr, "footfall:", strings.TrimSuffix(line, "\n"))
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		os.Exit(2)
	}
	os.Exit(1)
}

// helpText fits a screen of 80 columns and 24 lines.
const helpText = `footfall counts the unique visitors of a page, exactly.
  footfall [serve]          apply pending migrations, then serve
  footfall migrate          apply them, and import the Flask original's visitors
  footfall migrate -status  list the migrations
  footfall verify           recount; exit status 1 on a difference
  footfall verify -record   the same, and the page says when, and if it agreed
  footfall carry-over VISITS [VISITORS]  begin at an earlier counter's numbers
  footfall forget ADDRESS   remove a visitor; without ADDRESS, those on stdin
  footfall healthcheck      ask the running service's /readyz
  footfall dev              serve with a private PostgreSQL, kept between runs
  footfall version, help    print the version; print this
Settings (environment)                                      default
  DATABASE_URL      postgres://user:password@host/database  required, not by dev
  USER_NAME         who deployed it, shown on the page      n/a
  USER_URL          their link: https, http or mailto       none
  LISTEN_ADDR       host:port or unix:/path                 :8080, or :PORT
  TRUSTED_PROXIES   networks whose X-Forwarded-For counts   127.0.0.0/8, ::1/128
  IGNORED_NETWORKS  networks whose visits are not counted   none
  VISITOR_KEY       secret of the hash, 32 bytes or more    kept in the database
  SHUTDOWN_DELAY    not ready but serving for this long     0s
  SHUTDOWN_TIMEOUT  then the wait for requests in flight    10s
  LOG_FORMAT, LOG_LEVEL  json or text; debug, info, warn or error  json, info
DATABASE_URL_FILE and VISITOR_KEY_FILE name a file that holds the secret.
Exit status: 0 done, 1 failed, 2 wrong usage or settings.
`

// run is the program: main without the operating system.
func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	option := "" // the one that migrate or verify was given
	if len(args) == 1 && strings.HasPrefix(args[0], "-") {
		option = command + " " + strings.TrimLeft(args[0], "-")
	}
	status, record := option == "migrate status", option == "verify record"
	switch {
	case len(args) == 1 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help"):
		command = "help"
	case len(args) > 0 && !status && !record && command != "forget" && command != "carry-over":
		return &usageError{fmt.Errorf("%s: unexpected argument %q; see footfall help", command, args[0])}
	}
	var do func(context.Context, config, io.Writer) error
	switch command {
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(out, helpText)
		return err
	case "version", "-v", "-version", "--version":
		_, err := fmt.Fprintln(out, thisBuild())
		return err
	case "dev":
		dir, err := devdb.DefaultDir()
		if err != nil {
			return err
		}
		return dev(ctx, dir, getenv, out)
	case "healthcheck":
		return healthcheck(ctx, getenv)
	case "serve":
		do = serve
	case "migrate":
		if do = migrateCommand; status {
			do = migrationStatus
		}
	case "verify":
		do = func(ctx context.Context, cfg config, out io.Writer) error {
			return verifyCommand(ctx, cfg, out, record)
		}
	case "carry-over":
		do = func(ctx context.Context, cfg config, out io.Writer) error {
			return carryOverCommand(ctx, cfg, out, args)
		}
	case "forget":
		var addresses io.Reader = os.Stdin // a command line can be in logs, such as sudo's
		if len(args) > 0 {
			addresses = strings.NewReader(strings.Join(args, "\n"))
		}
		do = func(ctx context.Context, cfg config, out io.Writer) error {
			return forgetCommand(ctx, cfg, out, addresses)
		}
	default:
		return &usageError{fmt.Errorf("unknown command %q; see footfall help", command)}
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return &usageError{err}
	}
	return postgres.Explain(do(ctx, cfg, out))
}

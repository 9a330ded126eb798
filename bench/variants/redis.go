//go:build ignore

// A visit is one transaction of Redis, durable before it is answered: appendfsync is
// always. It speaks RESP2 itself (redis.io/docs/latest/develop/reference/protocol-spec).
package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"strconv"

	"footfall/internal/visitor"
)

func openVariant(*store) func(context.Context, visitor.ID) (counted, error) {
	conns := make(chan *bufio.ReadWriter, 64)
	for range cap(conns) {
		conn, err := net.Dial("unix", os.Getenv("REDIS"))
		if err != nil {
			panic(err)
		}
		conns <- bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	}
	return func(_ context.Context, id visitor.ID) (c counted, err error) {
		conn := <-conns
		defer func() { conns <- conn }()
		conn.WriteString("*1\r\n$5\r\nMULTI\r\n*4\r\n$7\r\nHINCRBY\r\n$8\r\nvisitors\r\n$16\r\n")
		conn.Write(id[:])
		conn.WriteString("\r\n$1\r\n1\r\n*2\r\n$4\r\nINCR\r\n$6\r\nvisits\r\n*2\r\n$4\r\nHLEN\r\n$8\r\nvisitors\r\n*1\r\n$4\r\nEXEC\r\n")
		if err := conn.Flush(); err != nil {
			return c, err
		}
		// +OK, three times +QUEUED, *3, then the three numbers.
		for i, number := range []*int64{nil, nil, nil, nil, nil, &c.number, &c.visits, &c.visitors} {
			line, err := conn.ReadSlice('\n')
			if err != nil || i < 5 {
				if err == nil && line[0] == '-' {
					err = errors.New(string(line))
				}
				if err != nil {
					return c, err
				}
				continue
			}
			if *number, err = strconv.ParseInt(string(line[1:len(line)-2]), 10, 64); err != nil {
				return c, err
			}
		}
		return c, nil
	}
}

// The reference's compressor. Reads members from standard input (a little-endian uint32 length
// before each), compresses each with compress/gzip at the given level, and prints
// "seconds-of-processor-time bytes".
package main

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

type count struct{ bytes int }

func (c *count) Write(p []byte) (int, error) {
	c.bytes += len(p)
	return len(p), nil
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func cpu() time.Duration {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func main() {
	runtime.GOMAXPROCS(1)
	level, err := strconv.Atoi(os.Args[1])
	check(err)
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	var members [][]byte
	for {
		var length uint32
		if err := binary.Read(in, binary.LittleEndian, &length); err == io.EOF {
			break
		} else {
			check(err)
		}
		member := make([]byte, length)
		_, err := io.ReadFull(in, member)
		check(err)
		members = append(members, member)
	}
	runtime.GC()
	begun := cpu()
	out := &count{}
	// One compressor, reset for each member. That favours Go: the converters create a new one for each
	// member.
	compressor, err := gzip.NewWriterLevel(out, level)
	check(err)
	for _, member := range members {
		compressor.Reset(out)
		_, err := compressor.Write(member)
		check(err)
		check(compressor.Close())
	}
	fmt.Println((cpu() - begun).Seconds(), out.bytes)
}

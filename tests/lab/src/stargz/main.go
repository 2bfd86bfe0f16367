// The stargz snapshotter as a program, of the library that Debian packages, and a converter of layers:
//
//	stargz serve SOCKET CONFIG ROOT
//	stargz layer <TAR >BLOB          the digest of the blob's table of contents goes to standard error
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/pelletier/go-toml"
	"google.golang.org/grpc"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 5 && os.Args[1] == "serve":
		err = serve(os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 2 && os.Args[1] == "layer":
		err = layer(os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("usage: stargz serve SOCKET CONFIG ROOT | stargz layer")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(socket, file, root string) error {
	tree, err := toml.LoadFile(file)
	if err != nil {
		return err
	}
	var config service.Config
	if err := tree.Unmarshal(&config); err != nil {
		return err
	}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), root, &config)
	if err != nil {
		return err
	}
	// Left by a killed process.
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	return server.Serve(listener)
}

func layer(in io.Reader, out io.Writer) error {
	tar, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))))
	if err != nil {
		return err
	}
	defer blob.Close()
	if _, err := io.Copy(out, blob); err != nil {
		return err
	}
	fmt.Fprint(os.Stderr, blob.TOCDigest())
	return nil
}

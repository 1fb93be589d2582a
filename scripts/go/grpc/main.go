// grpc: a server and a client of gRPC that take their configuration from xDS (GRPC_XDS_BOOTSTRAP), for the tests in the cluster.
//
//	grpc serve VERSION       answers health checks on port 8080
//	grpc call TARGET NUMBER  sends health checks, and prints how often each version answered
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	xdsserver "google.golang.org/grpc/xds"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "call":
		err = call(os.Args[2], os.Args[3])
	default:
		err = fmt.Errorf("usage: %s serve VERSION | call TARGET NUMBER", os.Args[0])
	}
	if err != nil {
		log.Fatal(err)
	}
}

func serve(version string) error {
	secure, err := xds.NewServerCredentials(xds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	answer := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		caller := "plaintext"
		if from, ok := peer.FromContext(ctx); ok {
			if tls, ok := from.AuthInfo.(credentials.TLSInfo); ok && tls.SPIFFEID != nil {
				caller = tls.SPIFFEID.String()
			}
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs("version", version, "caller", caller)); err != nil {
			return nil, err
		}
		return handler(ctx, request)
	}
	server, err := xdsserver.NewGRPCServer(grpc.Creds(secure), grpc.UnaryInterceptor(answer))
	if err != nil {
		return err
	}
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	listener, err := net.Listen("tcp4", "0.0.0.0:8080")
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

func call(target, text string) error {
	number, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	secure, err := xds.NewClientCredentials(xds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(secure))
	if err != nil {
		return err
	}
	client := grpc_health_v1.NewHealthClient(connection)
	counts := map[string]int{}
	for range number {
		counts[once(client)]++
	}
	for answer, count := range counts {
		fmt.Printf("%d\t%s\n", count, answer)
	}
	return nil
}

func once(client grpc_health_v1.HealthClient) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var header metadata.MD
	if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header)); err != nil {
		return "error: " + err.Error()
	}
	return fmt.Sprint(header.Get("version"), header.Get("caller"))
}

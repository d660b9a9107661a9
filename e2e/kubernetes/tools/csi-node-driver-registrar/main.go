// csi-node-driver-registrar tells the kubelet of a CSI plugin: it answers on a socket in the kubelet's folder of
// registrations with the plugin's name and where the kubelet finds it.
//
// It stands in for the sidecar of the same name, which is not a module that the proxy of these machines has; it takes
// that one's options, so that the same manifests run both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

var (
	plugin  = flag.String("csi-address", "/run/csi/socket", "the plugin's socket, as this program sees it")
	kubelet = flag.String("kubelet-registration-path", "", "the same socket, as the kubelet sees it")
	folder  = flag.String("plugin-registration-path", "/registration", "the kubelet's folder of registrations")
	timeout = flag.Duration("timeout", time.Second, "for one call of the plugin")
	_       = flag.Int("v", 0, "accepted, and without effect")
)

// registrar answers the kubelet.
type registrar struct {
	registration.UnimplementedRegistrationServer
	name string
}

func (r registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.name,
		Endpoint:          *kubelet,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.GetPluginRegistered() {
		// Its container is started again, and asks again.
		log.Fatalf("the kubelet refused %s: %s", r.name, status.GetError())
	}
	log.Printf("the kubelet knows %s", r.name)
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	flag.Parse()
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	if *kubelet == "" {
		return errors.New("--kubelet-registration-path is missing")
	}
	name, err := pluginName()
	if err != nil {
		return err
	}
	socket := filepath.Join(*folder, name+"-reg.sock")
	// One that was killed leaves its socket.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, registrar{name: name})
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ended
		server.GracefulStop()
	}()
	return server.Serve(listener)
}

// pluginName waits until the plugin says its name.
func pluginName() (string, error) {
	connection, err := grpc.NewClient("unix://"+*plugin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	for {
		call, cancel := context.WithTimeout(context.Background(), *timeout)
		info, err := csi.NewIdentityClient(connection).GetPluginInfo(call, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		cancel()
		if err == nil {
			return info.GetName(), nil
		}
		fmt.Fprintf(os.Stderr, "%s does not answer yet: %v\n", *plugin, err)
		time.Sleep(*timeout)
	}
}

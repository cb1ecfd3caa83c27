// dapr is the sidecar and the control plane of Dapr in one program: the first argument picks the one to run.
package main

import (
	"fmt"
	"os"

	daprd "github.com/dapr/dapr/cmd/daprd/app"
	injector "github.com/dapr/dapr/cmd/injector/app"
	operator "github.com/dapr/dapr/cmd/operator/app"
	placement "github.com/dapr/dapr/cmd/placement/app"
	scheduler "github.com/dapr/dapr/cmd/scheduler/app"
	sentry "github.com/dapr/dapr/cmd/sentry/app"
	_ "github.com/dapr/dapr/cmd/daprd/components"
	_ "go.uber.org/automaxprocs"
)

var commands = map[string]func(){
	"daprd":     daprd.Run,
	"injector":  injector.Run,
	"operator":  operator.Run,
	"placement": placement.Run,
	"scheduler": scheduler.Run,
	"sentry":    sentry.Run,
}

func main() {
	if len(os.Args) > 1 {
		if run, known := commands[os.Args[1]]; known {
			os.Args = append(os.Args[:1], os.Args[2:]...)
			run()
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: dapr daprd|placement|scheduler|sentry|operator|injector …")
	os.Exit(2)
}

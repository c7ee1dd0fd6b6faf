// Reads FOLDER/Modelfile as `ollama create -f` does, and prints what it would ask of Ollama, as JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/parser"
)

func request(folder string) (*api.CreateRequest, error) {
	file, err := os.Open(folder + "/Modelfile")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	read, err := parser.ParseFile(file)
	if err != nil {
		return nil, err
	}
	return read.CreateRequest(folder)
}

func main() {
	asked, err := request(os.Args[1])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(asked)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

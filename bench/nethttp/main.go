// Nethttp is the reference of the benchmark: bare net/http that answers every
// request with the same bytes and headers as footfall's page.
package main

import (
	"encoding/json"
	"log"
	"maps"
	"net/http"
	"os"
)

func main() {
	var answer struct {
		Header http.Header
		Body   []byte
	}
	text, err := os.ReadFile(os.Getenv("ANSWER"))
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(os.Getenv("LISTEN_ADDR"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		maps.Copy(w.Header(), answer.Header)
		w.Write(answer.Body)
	})))
}

package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed assets
var assetFiles embed.FS

// assetFile is one embedded file as it is served.
type assetFile struct {
	contentType  string
	etag         string // weak: plain and small are one to it (RFC 9110, section 8.8.1)
	plain, small []byte // small is gzip
}

// assets holds the files by their fingerprinted name, style.1a2b3c4d.css.
var assets, assetPaths = loadAssets()

func assetPath(name string) string { return assetPaths[name] }

func loadAssets() (map[string]assetFile, map[string]string) {
	files, paths := map[string]assetFile{}, map[string]string{}
	for _, name := range []string{"style.css", "favicon.svg"} {
		plain, err := fs.ReadFile(assetFiles, "assets/"+name)
		if err != nil {
			panic(err) // the list above is wrong
		}
		var small bytes.Buffer
		z, _ := gzip.NewWriterLevel(&small, gzip.BestCompression) // the level is a valid one
		z.Write(plain)                                            // into memory
		z.Close()
		sum := sha256.Sum256(plain)
		print := hex.EncodeToString(sum[:4])
		ext := path.Ext(name)
		unique := strings.TrimSuffix(name, ext) + "." + print + ext
		files[unique] = assetFile{mime.TypeByExtension(ext), `W/"` + print + `"`, plain, small.Bytes()}
		paths[name] = "/assets/" + unique
	}
	return files, paths
}

func (s *server) asset(w http.ResponseWriter, r *http.Request) error {
	file, ok := assets[r.PathValue("file")]
	if !ok {
		return errNotFound
	}
	h := w.Header()
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Type", file.contentType)
	h.Set("ETag", file.etag)
	h.Set("Vary", "Accept-Encoding")
	body := file.plain
	if acceptsGzip(r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		body = file.small
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body)) // answers If-None-Match
	return nil
}

// acceptsGzip reads an Accept-Encoding header (RFC 9110, section 12.5.3).
func acceptsGzip(header string) bool {
	for coding := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(coding, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			value := strings.TrimPrefix(strings.TrimSpace(weight), "q=")
			return weight == "" || strings.Trim(value, "0.") != "" // q=0, q=0.000: refused
		}
	}
	return false
}

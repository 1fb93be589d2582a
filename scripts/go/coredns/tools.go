// Package tools names the one program that is built here (see ../../build-go-tools).
package tools

import _ "github.com/coredns/coredns"

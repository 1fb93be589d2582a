// Package tools names the one program that is built here (see ../../build-go-tools).
package tools

import _ "k8s.io/kubernetes/cmd/kube-apiserver"

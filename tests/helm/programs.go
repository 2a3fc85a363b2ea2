//go:build programs

// Package helm names the program that tests run, so that go.mod and go.sum cover what it is made of.
package helm

import _ "helm.sh/helm/v3/cmd/helm"

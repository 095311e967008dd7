// Clones and fetches with go-git, as programs do that have no git.
//
//	client clone URL DIRECTORY         a bare mirror
//	client pin URL DIRECTORY COMMIT    an empty repository, and one commit into it, as refs/heads/pinned
package main

import (
	"fmt"
	"os"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "go-git:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "clone":
		_, err := git.PlainClone(args[2], true, &git.CloneOptions{URL: args[1], Mirror: true})
		return err
	case len(args) == 4 && args[0] == "pin":
		repository, err := git.PlainInit(args[2], true)
		if err != nil {
			return err
		}
		remote, err := repository.CreateRemote(&config.RemoteConfig{Name: "origin", URLs: []string{args[1]}})
		if err != nil {
			return err
		}
		spec := config.RefSpec(args[3] + ":refs/heads/pinned")
		return remote.Fetch(&git.FetchOptions{RefSpecs: []config.RefSpec{spec}, Tags: git.NoTags})
	default:
		return fmt.Errorf("usage: clone URL DIRECTORY, or pin URL DIRECTORY COMMIT")
	}
}

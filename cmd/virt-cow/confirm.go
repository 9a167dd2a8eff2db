package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
)

var errNotConfirmed = errors.New("not confirmed")

// confirm asks on the terminal for a word to be typed, and for exactly that.
func confirm(env *Env, prompt, word string) error {
	fmt.Fprint(env.Stderr, prompt)
	typed := make(chan string, 1)
	go func() { // a read of a terminal can't be called off
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			line = ""
		}
		typed <- line
	}()
	select {
	case line := <-typed:
		if strings.TrimSpace(line) != word {
			return errNotConfirmed
		}
		return nil
	case <-env.Context.Done():
		fmt.Fprintln(env.Stderr)
		return errNotConfirmed
	}
}

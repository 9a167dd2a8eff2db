// Package wire is the protocol between the lab and the agent in its guest: one line a message, on a serial
// port that nothing else uses.
package wire

// What begins every message; what comes before it on a line is passed over. Requests and replies differ, as
// a tty echoes until the agent has made it raw.
const (
	RequestMarker = "@lab-request@ "
	ReplyMarker   = "@lab-reply@ "
)

// MaxRequest is the longest request in bytes: a serial line has no flow control, the guest's kernel keeps
// this much.
const MaxRequest = 32 << 10

// Request asks the agent to run a shell command.
type Request struct {
	ID      uint64 `json:"id"`
	Command string `json:"cmd"`
}

// Reply tells how it ended.
type Reply struct {
	ID     uint64 `json:"id"`
	Code   int    `json:"rc"`
	Output string `json:"out"` // both outputs, as they came
}

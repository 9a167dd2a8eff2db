package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

// agentChannel is where libvirt speaks to the agent of a guest that has one.
const agentChannel = `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`

// AgentHook is where a test may put a program, in the guest, that the agent is to call with freeze and thaw.
const AgentHook = "/run/fsfreeze-hook"

// agentHook is the hook that is always there: an agent that is to call one that is not fails.
const agentHook = `#!/bin/busybox sh
[ ! -x ` + AgentHook + ` ] || exec ` + AgentHook + ` "$@"
`

// startAgent starts QEMU's guest agent in the guest, also after it was killed: start-agent. Its pid is in /run/qemu-ga.pid.
const startAgent = `#!/bin/busybox sh
for i in $(seq 600); do # the channel may be there later than its driver
	for p in /sys/class/virtio-ports/*; do
		[ "$(cat "$p/name" 2>/dev/null)" != org.qemu.guest_agent.0 ] || [ ! -e "/dev/${p##*/}" ] ||
			exec qemu-ga -d -m virtio-serial -p "/dev/${p##*/}" -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log -F/bin/agent-hook
	done
	sleep 0.1
done
echo start-agent: no channel
`

// addQEMUAgent adds QEMU's guest agent, which scripts/deps.sh unpacks: the package would start a service.
func addQEMUAgent(a *archive) error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	agent := filepath.Join(cache, "qemu-ga")
	if _, err := os.Stat(agent); err != nil {
		return fmt.Errorf("%w: no guest agent at %s: run scripts/deps.sh", ErrMissing, agent)
	}
	a.file("/bin/agent-hook", 0o755, []byte(agentHook))
	a.file("/bin/start-agent", 0o755, []byte(startAgent))
	return a.program("/sbin/qemu-ga", agent, "")
}

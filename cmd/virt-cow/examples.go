package main

// examples are command lines by the path of their command, for --help and the man pages. The test parses each.
var examples = map[string][]string{
	"": {
		"virt-cow attach web1 data1",
		"virt-cow status --watch",
		"virt-cow doctor",
	},
	"attach": {
		"virt-cow attach web1 data1",
		"virt-cow attach web1 --store /srv/vm/data1.cow --target vdc",
		"virt-cow attach web1 data1 --rate 50M",
	},
	"detach":         {"virt-cow detach web1 data1"},
	"hydrate start":  {"virt-cow hydrate start data1", "virt-cow hydrate start data1 --rate 100M"},
	"hydrate pause":  {"virt-cow hydrate pause data1"},
	"hydrate rate":   {"virt-cow hydrate rate data1 20M", "virt-cow hydrate rate data1 0"},
	"status":         {"virt-cow status", "virt-cow status --watch --interval 2s", "virt-cow status --watch --json >> volumes.jsonl"},
	"daemon":         {"virt-cow daemon", "virt-cow --config /root/try.toml daemon --libvirt /run/libvirt/virtqemud-sock"},
	"restart":        {"virt-cow restart --old", "virt-cow restart data1"},
	"hook":           {"virt-cow hook web1 prepare begin - < web1.xml"},
	"doctor":         {"virt-cow doctor", "virt-cow doctor --json"},
	"plugin list":    {"virt-cow plugin list"},
	"plugin check":   {"virt-cow plugin check /etc/virt-cow/plugins.d/webhook"},
	"config check":   {"virt-cow config check", "virt-cow config check /root/new.toml"},
	"config show":    {"virt-cow config show"},
	"config example": {"virt-cow config example > /etc/virt-cow/config.toml"},
	"store create": {
		"virt-cow store create --master /srv/images/debian12.raw /srv/vm/web1.cow",
		"virt-cow store create --master /srv/images/debian12.raw --size 40G /dev/disk/by-id/wwn-0x5000c500a0b1c2d3",
		"virt-cow store create --size 100G /srv/vm/data1.cow",
	},
	"store size":   {"virt-cow store size --master /srv/images/debian12.raw --size 40G"},
	"store claims": {"virt-cow store claims /dev/disk/by-id/wwn-0x5000c500a0b1c2d3"},
	"store info":   {"virt-cow store info /srv/vm/web1.cow"},
	"store verify": {"virt-cow store verify /srv/vm/web1.cow"},
	"store dump":   {"virt-cow store dump /srv/vm/web1.cow"},
	"serve":        {"virt-cow serve --hydrate --socket /run/virt-cow/web1.sock /srv/vm/web1.cow"},
	"completion": {
		"virt-cow completion bash > /etc/bash_completion.d/virt-cow",
		"virt-cow completion zsh > /usr/share/zsh/vendor-completions/_virt-cow",
		"virt-cow completion fish > /usr/share/fish/vendor_completions.d/virt-cow.fish",
	},
}

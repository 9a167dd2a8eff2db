#!/bin/sh
# Installs what the demo, the tests and the benchmark need, through apt-get, and only what is missing; unpacks
# a Debian kernel for the tiny guest, its iSCSI initiator, its guest agent, promtool, and a whole Debian for the tests of package and
# units, into a cache folder (never installed on this host).
#
#   scripts/deps.sh           all of it
#   scripts/deps.sh packages  packages only
#   scripts/deps.sh kernel    kernel only
#   scripts/deps.sh iscsi     iSCSI initiator only
#   scripts/deps.sh agent     QEMU's guest agent only
#   scripts/deps.sh promtool what checks Prometheus' rules, only
#   scripts/deps.sh debian    the Debian only; about a minute and 600 MB the first time
#   scripts/deps.sh databases a Debian with PostgreSQL and MariaDB, for `make soak`, and prints its folder; a minute or
#                             two and 1 GB the first time. Not part of all of it.
#   scripts/deps.sh trixie    a Debian 13 with its libvirt and QEMU, for `make e2e-trixie`, and prints its folder; a few
#                             minutes and 1 GB the first time. Not part of all of it.
#
# The cache is ${XDG_CACHE_HOME:-~/.cache}/virt-cow. No service is started: libvirt-daemon, not
# libvirt-daemon-system. Run it as root, or as one who may sudo.
set -eu

packages="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
gcc libc6-dev nbdkit libnbd-bin fio busybox-static e2fsprogs iproute2 util-linux debootstrap systemd curl jq
bash-completion zsh fish mandoc dmsetup strace swtpm swtpm-tools ovmf"
# What the Debian has beyond a minimal one, and what it has only files of: libvirt's AppArmor profiles.
suite=bookworm
inside="systemd systemd-sysv dbus udev lvm2 apparmor checkpolicy selinux-policy-dev"
profiles="libvirt-daemon-system"
# What the Debian 13 has: a host's programs, and those that tests run on one.
hypervisor="libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils iproute2 e2fsprogs
busybox-static curl jq nbdkit"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/virt-cow

say() { echo "deps: $*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		env DEBIAN_FRONTEND=noninteractive "$@"
	elif command -v sudo >/dev/null; then
		sudo env DEBIAN_FRONTEND=noninteractive "$@"
	else
		die "not root and no sudo: run as root: $*"
	fi
}

# Package lists are fetched only once something is to be had, and only if apt does not know of it or fails.
install_packages() {
	command -v dpkg-query >/dev/null || die "not a Debian or Ubuntu: install by hand: $packages"
	missing=
	for p in $packages; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing="$missing $p"
	done
	[ -n "$missing" ] || return 0
	say "installing$missing"
	# shellcheck disable=SC2086 # a list of words
	as_root apt-get install -y -q --no-install-recommends $missing >&2 && return 0
	say "trying again with fresh package lists"
	as_root apt-get update -q >&2
	# shellcheck disable=SC2086
	as_root apt-get install -y -q --no-install-recommends $missing >&2
}

# fetch unpacks packages into $tmp/tree. None is installed, for some would start a service.
fetch() {
	(cd "$tmp" && apt-get -q -o APT::Sandbox::User=root download "$@" >&2) || return 1
	for d in "$tmp"/*.deb; do dpkg-deb -x "$d" "$tmp/tree" || return 1; done
}

# unpack has a command fetch what the cache is to have as $1, with fresh package lists if it fails. $tmp goes with the shell.
unpack() {
	say "unpacking $1 into $cache"
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/$1.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 1' INT TERM
	shift
	"$@" || {
		as_root apt-get update -q >&2
		"$@" || die "$* failed: is there a Debian mirror in /etc/apt/sources.list*?"
	}
}

# The package of that name is empty, and needs the newest kernel's.
fetch_kernel() {
	k=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ -n "$k" ] && fetch "$k"
}

unpack_kernel() {
	for v in "$cache"/kernel/boot/vmlinuz-*; do
		[ ! -e "$v" ] || return 0
	done
	unpack kernel fetch_kernel
	rm -rf "$cache/kernel"
	mv "$tmp/tree" "$cache/kernel"
}

unpack_iscsi() {
	[ ! -e "$cache/iscsi" ] || return 0
	unpack iscsi fetch open-iscsi libopeniscsiusr
	mkdir "$tmp/files"
	find "$tmp/tree" \( -name iscsistart -o -name 'libopeniscsiusr.so.*' \) -exec mv -t "$tmp/files" {} +
	mv "$tmp/files" "$cache/iscsi"
}

# One program of a package.
unpack_program() { # of the package $1, the program $2
	name=$(basename "$2")
	[ ! -e "$cache/$name" ] || return 0
	unpack "$name" fetch "$1"
	mv "$tmp/tree/$2" "$cache/$name"
}
unpack_agent() { unpack_program qemu-guest-agent usr/sbin/qemu-ga; }
unpack_promtool() { unpack_program prometheus usr/bin/promtool; }

# The machine's own mirror of a suite, as apt knows it; else the one of whatever Debian it is, which has all suites.
mirror() { # of the suite $1
	apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		sed -n "s/^Debian \([^ ]*\) main /\1 /p" | grep -v -e '^[^ ]*-' |
		awk -v suite="$1" 'NR == 1 { uri = $2 } $1 == suite { uri = $2; exit } END { print uri }'
}

# The folder is complete once it has the name: what was interrupted is made anew.
make_debian() { # the folder $1 in the cache, the suite $2, packages $3, packages to unpack $4
	from=$(mirror "$2")
	[ -n "$from" ] || { as_root apt-get update -q >&2; from=$(mirror "$2"); }
	[ -n "$from" ] || die "apt knows no mirror of Debian $2: add one to /etc/apt/sources.list*"
	say "making a Debian $2 in $cache"
	mkdir -p "$cache"
	tmp=$(mktemp -d "$cache/debian.XXXXXX")
	trap 'as_root rm -rf "$tmp"' EXIT
	trap 'exit 1' INT TERM
	as_root debootstrap --variant=minbase "$2" "$tmp/tree" "$from" >"$tmp/log" 2>&1 || { tail -n 20 "$tmp/log" >&2; die "debootstrap failed"; }
	# No service starts in there.
	printf '#!/bin/sh\nexit 101\n' | as_root tee "$tmp/tree/usr/sbin/policy-rc.d" >/dev/null
	as_root chmod 755 "$tmp/tree/usr/sbin/policy-rc.d"
	# shellcheck disable=SC2016 # words for the inner shell
	as_root chroot "$tmp/tree" sh -euc '
		apt-get install -y -q --no-install-recommends $1
		cd /tmp
		[ -z "$2" ] || apt-get -q -o APT::Sandbox::User=root download $2
		for d in *.deb; do [ ! -e "$d" ] || { dpkg-deb -x "$d" /usr/share/virt-cow-test; rm "$d"; }; done
		apt-get clean
		rm -f /usr/sbin/policy-rc.d /etc/machine-id' sh "$3" "$4" >"$tmp/log" 2>&1 || { tail -n 20 "$tmp/log" >&2; die "packages for it failed"; }
	as_root mv "$tmp/tree" "$cache/$1"
	as_root rm -rf "$tmp"
	trap - EXIT
}

make_bookworm() {
	[ -e "$cache/debian-$suite-1" ] || make_debian "debian-$suite-1" "$suite" "$inside" "$profiles"
}

make_databases() {
	tree="databases-$suite-1"
	[ -e "$cache/$tree" ] || make_debian "$tree" "$suite" "postgresql mariadb-server procps" ""
	echo "$cache/$tree"
}

# Made anew if a program in it does not run: something was removed from it, or it was cut short.
make_trixie() {
	tree=hypervisor-trixie-1
	for p in "libvirtd --version" "virsh --version" "qemu-system-x86_64 --version" "qemu-img --version" "ip -V" "busybox true" "curl --version" "nbdkit --version"; do
		# shellcheck disable=SC2086 # a list of words
		[ ! -e "$cache/$tree" ] || as_root chroot "$cache/$tree" $p >/dev/null 2>&1 </dev/null || {
			say "$cache/$tree: $p fails: making it anew"
			as_root rm -rf "$cache/$tree"
		}
	done
	[ -e "$cache/$tree" ] || make_debian "$tree" trixie "$hypervisor" ""
	echo "$cache/$tree"
}

case ${1:-all} in
all)
	install_packages
	(unpack_kernel)
	(unpack_iscsi)
	(unpack_agent)
	(unpack_promtool)
	(make_bookworm)
	;;
packages) install_packages ;;
kernel) unpack_kernel ;;
iscsi) unpack_iscsi ;;
agent) unpack_agent ;;
promtool) unpack_promtool ;;
debian) make_bookworm ;;
databases) make_databases ;;
trixie) make_trixie ;;
*) die "usage: $0 [packages|kernel|iscsi|agent|promtool|debian|databases|trixie]" ;;
esac

#!/bin/sh
# Packs bin/virt-cow, bin/virt-cow-full and all that belongs to them into a Debian package, with dpkg-deb.
#
#   scripts/deb.sh [VERSION [FOLDER]]   default: what git says, bin
#
# Prints the package's path. The same commit gives the same package, byte for byte, from the same compiler.
set -eu

cd "$(dirname "$0")/.."
version=${1:-$(git describe --always --dirty 2>/dev/null || echo dev)}
out=${2:-bin}

say() { echo "deb: $*" >&2; }
die() { say "$*"; exit 1; }

[ -x bin/virt-cow ] && [ -x bin/virt-cow-full ] || die "no bin/virt-cow or bin/virt-cow-full: run make build"
command -v dpkg-deb >/dev/null || die "no dpkg-deb: this needs a Debian or Ubuntu"

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
arch=$(dpkg --print-architecture)

# A tag v1.2.3, or 1.2.3 and 4 commits; without a tag only a hash, which is older than any version.
case $version in
v[0-9]* | [0-9]*.*) debian=$(echo "${version#v}" | sed 's/-/+/; s/-/./g') ;;
*) debian=0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S)+$(echo "$version" | sed 's/-/./g') ;;
esac

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
trap 'exit 1' INT TERM
chmod 755 "$tree"

make --no-print-directory -s install-files DESTDIR="$tree" PREFIX=/usr >&2

doc=$tree/usr/share/doc/virt-cow
install -D -m 0644 packaging/deb/copyright "$doc/copyright"
install -D -m 0644 packaging/deb/lintian-overrides "$tree/usr/share/lintian/overrides/virt-cow"
cat >"$tree/changelog" <<END
virt-cow ($debian) unstable; urgency=medium

  * See CHANGELOG.md.gz for what changed.

 -- The virt-cow authors <virt-cow@virt-cow.org>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
gzip -9n <"$tree/changelog" >"$doc/changelog.gz"
rm "$tree/changelog"
gzip -9n <CHANGELOG.md >"$doc/CHANGELOG.md.gz"
find "$tree/usr/share/man" -type f ! -name '*.gz' -exec gzip -9n {} + 2>/dev/null || true

mkdir "$tree/DEBIAN"
for f in postinst prerm postrm; do
	install -m 0755 "packaging/deb/$f" "$tree/DEBIAN/$f"
done
(cd "$tree" && find etc -type f | LC_ALL=C sort | sed 's|^|/|') >"$tree/DEBIAN/conffiles"
(cd "$tree" && find usr etc -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
size=$(du -k -s --apparent-size --exclude=DEBIAN "$tree" | cut -f 1)
sed "s|@VERSION@|$debian|; s|@ARCH@|$arch|; s|@SIZE@|$size|" packaging/deb/control >"$tree/DEBIAN/control"
find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$out"
package=$out/virt-cow_${debian}_$arch.deb
dpkg-deb --root-owner-group -Z"${VIRT_COW_DEB_COMPRESSION:-xz}" --build "$tree" "$package" >&2
echo "$package"

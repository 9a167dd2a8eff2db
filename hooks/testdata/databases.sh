# Runs as root in a Debian of its own, with the hooks in /hooks/fsfreeze: sh -s mariadb|postgresql
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
hook=/hooks/fsfreeze/fsfreeze-hook
log=/run/fsfreeze-hook.log

die() { echo "FAILED: $*"; cat "$log" 2>/dev/null || true; exit 1; }
say() { echo "== $(date +%T) $*"; }

# until_true WHAT COMMAND...: two minutes at most
until_true() {
	what=$1
	shift
	tries=0
	until "$@" >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ "$tries" -lt 1200 ] || die "still not after two minutes: $what"
		sleep 0.1
	done
}

sql() { mariadb -N -B "$@" </dev/null; }
rows() { sql -e "SELECT COUNT(*) FROM d.$1"; }
grows() { [ "$(rows "$1")" -gt "$2" ]; }
locked() { # nothing is committed, or written to a table without a log
	a=$(rows t) b=$(rows m)
	sleep 2
	[ "$a" = "$(rows t)" ] && [ "$b" = "$(rows m)" ]
}
goes_on() { until_true "writes that go on" grows t "$(rows t)"; until_true "writes that go on" grows m "$(rows m)"; }

mariadb_server() { # data folder $1
	mkdir -p /run/mysqld
	chown mysql /run/mysqld
	mariadbd --user=mysql --datadir="$1" --skip-networking --innodb-flush-log-at-trx-commit=1 >/run/mariadbd.log 2>&1 &
	server=$!
	until_true "MariaDB" sql -e "SELECT 1"
}

mariadb_test() {
	$hook freeze || die "no server, and a freeze fails"
	$hook thaw || die "no server, and a thaw fails"
	mariadb_server /var/lib/mysql
	sql -e "CREATE DATABASE d; CREATE TABLE d.t (i INT PRIMARY KEY) ENGINE=InnoDB; CREATE TABLE d.m (i INT PRIMARY KEY) ENGINE=MyISAM;"
	for table in t m; do # each by itself: one that waits must not hold up the other
		i=0
		while :; do
			i=$((i + 1))
			echo "INSERT INTO d.$table VALUES ($i);"
		done | mariadb &
	done
	goes_on

	say "frozen: nothing is written; what is on the disk is whole"
	$hook freeze || die "freeze"
	locked || die "written while frozen"
	m=$(rows m) t=$(rows t)
	cp -a /var/lib/mysql /var/lib/copy
	locked || die "written while frozen"
	$hook thaw || die "thaw"
	[ ! -e /run/virt-cow-fsfreeze-mysql ] || die "left its state"
	goes_on

	say "the same as to MySQL"
	printf '#!/bin/sh\ncase "$*" in *VERSION*) echo 8.0.40 ;; *) exec mariadb "$@" ;; esac\n' >/run/as-mysql
	chmod +x /run/as-mysql
	MYSQL_CLIENT=/run/as-mysql $hook freeze || die "freeze"
	locked || die "written while frozen"
	$hook thaw || die "thaw"
	goes_on

	say "one that holds a table: no freeze, and nothing stays locked"
	(echo "LOCK TABLES d.m WRITE; SELECT SLEEP(40);"; sleep 100) | mariadb >/dev/null 2>&1 &
	holder=$!
	sleep 1
	began=$(date +%s)
	! MYSQL_WAIT=3 $hook freeze || die "frozen over a locked table"
	[ $(($(date +%s) - began)) -lt 60 ] || die "that took too long"
	[ ! -e /run/virt-cow-fsfreeze-mysql ] || die "left its state"
	sql -e "SELECT CONCAT('KILL ', id, ';') FROM information_schema.processlist WHERE info LIKE '%SLEEP(40)%' AND id <> CONNECTION_ID()" | mariadb
	kill $holder 2>/dev/null || true
	goes_on

	say "nobody thaws: it lets go by itself, and a late thaw says so"
	MYSQL_WAIT=2 MYSQL_HOLD=3 $hook freeze || die "freeze"
	locked || die "written while frozen"
	goes_on
	! $hook thaw || die "a thaw that came too late says nothing"
	$hook thaw || die "a second thaw"

	say "the session is killed: the lock is gone, and the thaw says so"
	$hook freeze || die "freeze"
	locked || die "written while frozen"
	sql -e "SELECT CONCAT('KILL ', id, ';') FROM information_schema.processlist WHERE command = 'Sleep' AND id <> CONNECTION_ID() AND time >= 2" | mariadb
	goes_on
	! $hook thaw || die "a thaw without a lock says nothing"

	say "the server dies frozen"
	$hook freeze || die "freeze"
	kill -KILL "$server"
	until_true "the end of the server" sh -c "! pidof mariadbd"
	! $hook thaw || die "a thaw without a server says nothing"

	say "the copy comes back"
	mariadb_server /var/lib/copy
	[ "$(rows m) $(rows t)" = "$m $t" ] || die "the copy has $(rows m) and $(rows t) rows, had $m and $t at the cut"
	[ "$(sql -e 'CHECK TABLE d.m, d.t' | grep -c 'status.OK')" = 2 ] || die "the tables are damaged"
}

pg() { (cd / && runuser -u postgres -- psql -X -A -t -q "$@" </dev/null); }
checkpoints() { pg -c "SELECT checkpoints_req FROM pg_stat_bgwriter"; }

postgresql_test() {
	$hook freeze || die "no server, and a freeze fails"
	bin=$(echo /usr/lib/postgresql/*/bin)
	data=/var/lib/postgresql/test
	mkdir -p /run/postgresql
	chown postgres /run/postgresql
	as() { (cd / && runuser -u postgres -- "$@" </dev/null >>/run/postgres.log 2>&1); }
	as "$bin/initdb" -D $data || die "initdb"
	as "$bin/pg_ctl" -w -D $data -o "-k /run/postgresql -c listen_addresses='' -c checkpoint_timeout=1h" start || { cat /run/postgres.log; die "start"; }
	pg -c "CREATE TABLE t (i INT PRIMARY KEY)"
	i=0
	while :; do
		i=$((i + 1))
		printf 'INSERT INTO t VALUES (%d);\n' $i
	done | (cd / && runuser -u postgres -- psql -X -q) &
	until_true "rows" sh -c "[ \"\$(cd / && runuser -u postgres -- psql -X -A -t -c 'SELECT COUNT(*) FROM t')\" -gt 100 ]"

	say "a checkpoint, and a cut that is a crash"
	before=$(checkpoints)
	$hook freeze || die "freeze"
	sleep 1 # statistics come a moment later
	[ "$(checkpoints)" -gt "$before" ] || die "no checkpoint"
	least=$(pg -c "SELECT COUNT(*) FROM t")
	kill -STOP $(pidof postgres)
	cp -a $data $data.copy
	kill -CONT $(pidof postgres)
	$hook thaw || die "thaw"

	say "a user that may not connect: no freeze"
	! PG_USER=nobody $hook freeze || die "frozen without a checkpoint"

	say "a server that hangs: no freeze, in time"
	kill -STOP $(pidof postgres)
	began=$(date +%s)
	! PG_TIMEOUT=3 $hook freeze || die "frozen without a checkpoint"
	[ $(($(date +%s) - began)) -lt 60 ] || die "that took too long"
	kill -KILL $(pidof postgres)
	until_true "the end of the server" sh -c "! pidof postgres"

	say "the copy comes back"
	rm -f /run/postgresql/.s.* $data.copy/postmaster.pid
	as "$bin/pg_ctl" -w -D $data.copy -o "-k /run/postgresql -c listen_addresses=''" start || { cat /run/postgres.log; die "start"; }
	have=$(pg -c "SELECT COUNT(*) FROM t")
	[ "$have" -ge "$least" ] || die "the copy has $have rows, $least were committed before the cut"
	[ "$have" = "$(pg -c 'SELECT MAX(i) FROM t')" ] || die "the copy has a gap"
	as "$bin/pg_ctl" -w -D $data.copy -m fast stop
	as "$bin/pg_checksums" --check -D $data.copy || true
}

"$1_test"
say "all well"

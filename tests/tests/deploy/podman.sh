#!/bin/sh
# Stands for podman: a service is a process, a volume a directory, an image the programs that are built.
# BENCH is where the test has written how each service of the compose file is started.
set -eu

fail() {
    echo "podman: $*" >&2
    exit 125
}

# A process that ended and that nobody waited for has no program any more.
lives() { readlink "/proc/$1/exe" >/dev/null 2>&1; }

# The database's address is that of the test's server; what the operator wrote must be right first.
hand_out_secrets() {
    password=$(cat secrets/database-password)
    [ "$(cat secrets/database-url)" = "postgres://dormouse:$password@postgres/dormouse" ] ||
        fail "secrets/database-url is $(cat secrets/database-url)"
    mkdir -p "$BENCH/secrets"
    printf %s "$BENCH_DATABASE" > "$BENCH/secrets/database-url"
}

start() {
    if [ -e "$BENCH/$1.job" ]; then
        sh "$BENCH/$1.sh" || fail "the job $1 failed"
    elif [ -e "$BENCH/$1.sh" ] && ! { [ -e "$BENCH/$1.pid" ] && lives "$(cat "$BENCH/$1.pid")"; }; then
        setsid sh "$BENCH/$1.sh" >>"$BENCH/$1.log" 2>&1 </dev/null &
        echo $! > "$BENCH/$1.pid"
    fi
}

until_healthy() {
    [ -e "$BENCH/$1.health" ] || return 0
    until sh "$BENCH/$1.health" >/dev/null 2>&1; do
        lives "$(cat "$BENCH/$1.pid")" || fail "$1 ended: $(tail -n 20 "$BENCH/$1.log")"
        sleep 0.1
    done
}

# With a container everything in it ends.
end() {
    [ -e "$BENCH/$2.pid" ] || return 0
    pid=$(cat "$BENCH/$2.pid")
    kill "-$1" "$pid" 2>/dev/null || true
    while lives "$pid"; do sleep 0.1; done
    rm "$BENCH/$2.pid"
    printf '%s/volumes/%s/\n' "$BENCH" "$2" | grep -laF -f - /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3 |
        while read -r inside; do kill -9 "$inside" 2>/dev/null || true; done
}

case "$1 ${2-}" in
"build --tag") ;;
"compose up")
    [ "$3" = --detach ] || fail "up without --detach would stay"
    shift 3
    [ $# -gt 0 ] || set -- $(cat "$BENCH/services")
    hand_out_secrets
    for service in "$@"; do start "$service"; done
    for service in "$@"; do until_healthy "$service"; done
    ;;
"compose run")
    [ "$3" = --rm ] || fail "run without --rm leaves containers"
    service=$4
    shift 4
    exec sh "$BENCH/$service.sh" "$@"
    ;;
"compose cp")
    case $3 in *:/var/lib/dormouse/*) ;; *) fail "$3 is in no data directory" ;; esac
    cp "$BENCH/volumes/${3%%:*}/${3#*:/var/lib/dormouse/}" "$4"
    ;;
"compose kill")
    shift 2
    for service in "$@"; do end KILL "$service"; done
    ;;
"compose down")
    for service in $(cat "$BENCH/services"); do end TERM "$service"; done
    ;;
*) fail "$* is not known here" ;;
esac

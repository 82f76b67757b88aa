#!/bin/sh
# Install the programs that tests need and Python's packages do not bring: PostgreSQL. Needs root and apt; elsewhere it
# says what is missing. Ends with 1 while something is missing, so that no test is left out in silence.
set -u

have_postgres() { command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }

have_postgres && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing PostgreSQL, on which the store is tested." >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends postgresql >/dev/null 2>&1 \
        || { apt-get update -qq >/dev/null 2>&1; apt-get install -y -qq --no-install-recommends postgresql >/dev/null; }
fi
have_postgres && exit 0
echo "Missing: PostgreSQL (initdb), on which the store is tested. On Debian or Ubuntu: sudo apt-get install postgresql" >&2
exit 1

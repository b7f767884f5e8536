#!/bin/sh
# Prints what is sent to Dataflow to launch the template: launch.json with the names filled in.
#   BUCKET=b WORKER=... deploy/dataflow/body.sh [RELEASE_ID]
# Without RELEASE_ID as a schedule needs it: the same words every time, and launch.py puts the month in.
# VERSION: of the template; else that of this checkout.
set -eu
here=$(dirname "$0")
id=${1:-}
version=${VERSION:-$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/../../dpgmm_beam/__init__.py")}
case $id in
    *[!A-Za-z0-9._-]*) echo "body.sh: the release id must be letters, digits, '.', '_' and '-'" >&2; exit 2 ;;
esac
# A second job of the same name is refused while the first one runs.
name=dpgmm-release
if [ -n "$id" ]; then
    name=dpgmm-$(printf %s "$id" | tr 'A-Z_.' 'a-z--' | sed 's/-*$//')
fi
sed -e "s|BUCKET|${BUCKET:?}|g" -e "s|\"WORKER\"|\"${WORKER:?}\"|" -e "s|VERSION|$version|" \
    -e "s|\"dpgmm-release\"|\"$name\"|" -e "s|\"{month}\"|\"${id:-{month\}}\"|" "$here/launch.json"

#!/bin/sh
# One scheduled release:  release.sh [options of dpgmm release or of Beam]
#
# Reads DPGMM_INPUT, _ENCODER, _CLASSES, _EPSILON, _DELTA, _RELEASES (the folder that gets one
# folder a release), _PRIVATE_DIR, _NOISE_KEY_FILE (or _RELEASE_KEY_STORE in its place) and _RELEASE_ID;
# with DPGMM_LEDGER and _DATASET releases are charged to one budget (docs/budget.md).
#
# DPGMM_RELEASE_ID names the occasion, not the try: {month} in it becomes 2026-11 and {date}
# 2026-11-01, in UTC.  With {month}, whatever is started in a month makes that month's release, or
# finds it made and does nothing; with {date}, a second try on the next day would be a new release
# and spend its epsilon again.
#
# In a Kubernetes CronJob both are those of the scheduled time, for every try: JOB_NAME is the
# name of the Job and DPGMM_CRONJOB that of the CronJob, whose own Jobs are called
# DPGMM_CRONJOB-MINUTES, eight digits, the scheduled minute counted from 1970.  Any other JOB_NAME
# (of a Job made by hand) says nothing about time.  Without DPGMM_RELEASE_ID the id is the scheduled
# time, or such a JOB_NAME as it is.
#
# Ends with 2, as dpgmm does for what it refuses, where trying again is of no use; so is it after 3,
# which says that the ledger has no budget left.
set -eu
umask 077

refuse() {
    echo "release.sh: $*" >&2
    exit 2
}

key_option=--noise-key-file key=NOISE_KEY_FILE
if [ -n "${DPGMM_RELEASE_KEY_STORE:-}" ]; then
    key_option=--release-key-store key=RELEASE_KEY_STORE
fi
for name in INPUT ENCODER CLASSES EPSILON DELTA RELEASES PRIVATE_DIR "$key"; do
    eval "value=\${DPGMM_$name:-}"
    [ -n "$value" ] || refuse "DPGMM_$name must be set"
done

job=${JOB_NAME:-}
case $job in
    "${DPGMM_CRONJOB:-no cronjob}"-[1-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9])
        seconds=$((${job##*-} * 60))
        default=$(date -u -d "@$seconds" +%Y-%m-%dT%H%MZ)
        ;;
    *)
        seconds=$(date -u +%s)
        default=$job
        ;;
esac
id=${DPGMM_RELEASE_ID:-$default}
[ -n "$id" ] || refuse "DPGMM_RELEASE_ID must be set, for example to {month}"
month=$(date -u -d "@$seconds" +%Y-%m)
date=$(date -u -d "@$seconds" +%Y-%m-%d)
id=$(printf '%s\n' "$id" | sed -e "s/{month}/$month/g" -e "s/{date}/$date/g")
case $id in
    *[{}]*) refuse "DPGMM_RELEASE_ID=$DPGMM_RELEASE_ID must have no braces but {month} and {date}" ;;
    */*) refuse "DPGMM_RELEASE_ID=$DPGMM_RELEASE_ID must have no slash: it names a folder" ;;
esac
output=$DPGMM_RELEASES/$id

if [ -e "$output/manifest.json" ]; then
    echo "$output holds its release already"
    exit 0
fi
if [ -n "${DPGMM_LEDGER:-}" ]; then
    set -- --ledger "$DPGMM_LEDGER" --dataset "${DPGMM_DATASET:-}" "$@"
fi
eval "key=\$DPGMM_$key"
exec dpgmm release \
    --input "$DPGMM_INPUT" --encoder "$DPGMM_ENCODER" --classes "$DPGMM_CLASSES" \
    --epsilon "$DPGMM_EPSILON" --delta "$DPGMM_DELTA" --output "$output" \
    --private-dir "$DPGMM_PRIVATE_DIR" \
    "$key_option" "$key" --release-id "$id" "$@"

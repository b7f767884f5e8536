#!/bin/sh
# One scheduled release:  release.sh [options of dpgmm release or of Beam]
#
# Reads DPGMM_INPUT, _ENCODER, _CLASSES, _EPSILON, _DELTA, _RELEASES (the folder that gets one
# folder a release), _PRIVATE_DIR and _NOISE_KEY_FILE.  The release id is
#   DPGMM_RELEASE_ID, else
#   the scheduled time of a Kubernetes CronJob, from JOB_NAME (...-MINUTES_SINCE_1970), else
#   JOB_NAME itself (a Job made by hand), else
#   today's date.
# It is the same for every try of one occasion, so a second try makes the same bytes, or finds the
# release made and does nothing.
set -eu
umask 077

job=${JOB_NAME:-}
minutes=${job##*-}
case $minutes in
    '' | *[!0-9]*) id=${job:-$(date -u +%Y-%m-%d)} ;;
    *) id=$(date -u -d "@$((minutes * 60))" +%Y-%m-%dT%H%MZ) ;;
esac
id=${DPGMM_RELEASE_ID:-$id}
output=${DPGMM_RELEASES:?}/$id

if [ -e "$output/manifest.json" ]; then
    echo "$output holds its release already"
    exit 0
fi
exec dpgmm release \
    --input "${DPGMM_INPUT:?}" --encoder "${DPGMM_ENCODER:?}" --classes "${DPGMM_CLASSES:?}" \
    --epsilon "${DPGMM_EPSILON:?}" --delta "${DPGMM_DELTA:?}" --output "$output" \
    --private-dir "${DPGMM_PRIVATE_DIR:?}" \
    --noise-key-file "${DPGMM_NOISE_KEY_FILE:?}" --release-id "$id" "$@"

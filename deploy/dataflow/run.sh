#!/bin/sh
# Starts one release by hand:
#   PROJECT=p REGION=europe-west1 BUCKET=b WORKER=dpgmm-worker@p.iam.gserviceaccount.com \
#       deploy/dataflow/run.sh RELEASE_ID
# BUCKET: templates/ and input/.  BUCKET-private: keys/ and state/, read by the worker account only.
set -eu
id=${1:?release id}
version=${VERSION:-0.1.0}
private=gs://${BUCKET:?}-private

# ^~^ makes ~ the separator: the list of classes has commas.
gcloud dataflow flex-template run "dpgmm-$(echo "$id" | tr 'A-Z_.' 'a-z--')" \
    --project "${PROJECT:?}" --region "${REGION:?}" \
    --template-file-gcs-location "gs://$BUCKET/templates/dpgmm-release-$version.json" \
    --service-account-email "${WORKER:?}" \
    --staging-location "gs://$BUCKET/staging" --temp-location "gs://$BUCKET/temp" \
    --worker-machine-type n2-standard-4 --max-workers 10 \
    --additional-experiments disable_logging_submission_environment \
    --parameters "^~^input=gs://$BUCKET/input/*.parquet~encoder=precomputed~classes=gs://$BUCKET/input/classes.txt~epsilon=1~delta=1e-5~output=gs://$BUCKET/releases/$id~private_dir=$private/state~noise_key_file=$private/keys/noise.key~release_id=$id"

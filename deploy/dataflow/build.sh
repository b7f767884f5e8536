#!/bin/sh
# Builds and pushes the image, and writes the template's specification.
#   PROJECT=p REGION=europe-west1 REPOSITORY=dpgmm BUCKET=b deploy/dataflow/build.sh [VERSION]
# From the repository's root, with docker (BuildKit) and gcloud signed in.
set -eu
version=${1:-$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' dpgmm_beam/__init__.py)}
image=${REGION:?}-docker.pkg.dev/${PROJECT:?}/${REPOSITORY:?}/dpgmm:$version

# IMAGE tells the launcher which image workers run: this one.  No Flink job server is needed here.
docker build -f deploy/Dockerfile -t "$image" --build-arg IMAGE="$image" \
    --build-arg FLINK_VERSION= --build-arg RUN_AS="${RUN_AS:-0}" .
docker push "$image"
gcloud dataflow flex-template build "gs://${BUCKET:?}-templates/dpgmm-release-$version.json" \
    --project "$PROJECT" --image "$image" --sdk-language PYTHON \
    --metadata-file deploy/dataflow/metadata.json

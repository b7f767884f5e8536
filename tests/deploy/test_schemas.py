"""deploy/ against published schemas, and kustomize where it is installed."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dpgmm_beam import __version__
from tests.deploy.manifests import DEPLOY, KUBERNETES, compose, objects, pod_spec, pod_template

# The oldest release that the manifests are meant for, and a recent one.
KUBERNETES_VERSIONS = ("1.30", "1.35")


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    ("name", "document"), objects(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_kubernetes_objects_fit_the_published_schema(name, document, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install .[test]")
    kubernetes_validate.validate(document, version, strict=True)


def test_compose_file_fits_the_compose_specification():
    check_jsonschema = pytest.importorskip("check_jsonschema", reason="pip install .[test]")
    import jsonschema

    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(compose(), json.loads(schema.read_text()))


def kustomization():
    return yaml.safe_load((DEPLOY / "flink/kustomization.yaml").read_text())


def test_kustomization_names_every_file_and_nothing_else():
    named = {DEPLOY / "flink" / name for name in kustomization()["resources"]}
    assert named == set(KUBERNETES)
    for generator in kustomization()["configMapGenerator"]:
        for name in generator.get("files", []) + generator.get("envs", []):
            assert (DEPLOY / "flink" / name).is_file()


def images(documents):
    return {
        container["image"]
        for document in documents
        for key in ("containers", "initContainers")
        for container in pod_spec(document).get(key, [])
    }


def test_kustomization_names_the_images_of_this_version():
    used = images(o for name, o in objects() if name != "fill.yaml")
    assert used == {image["name"] for image in kustomization()["images"]}
    assert {image["newTag"] for image in kustomization()["images"]} == {__version__}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kustomize_builds_everything_with_images_and_labels():
    done = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "flink"], capture_output=True, text=True, check=True
    )
    built = list(yaml.safe_load_all(done.stdout))
    assert {(o["kind"], o["metadata"]["name"]) for o in built if o["kind"] != "ConfigMap"} == {
        (o["kind"], o["metadata"]["name"]) for name, o in objects() if name != "fill.yaml"
    }
    assert all(image.startswith("registry.example.com/") for image in images(built))
    labels = [template["metadata"]["labels"] for o in built if (template := pod_template(o))]
    assert {each["app.kubernetes.io/component"] for each in labels} == {"jobmanager", "taskmanager", "driver"}

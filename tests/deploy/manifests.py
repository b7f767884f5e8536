"""What the tests of deploy/ read: the files of it, parsed."""

import functools
import importlib.util
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "flink/kubernetes").glob("*.yaml"))
FILL = DEPLOY / "flink/fill.yaml"

UNITS = {"m": 1, "Mi": 1, "M": 1, "g": 1024, "G": 1024, "Gi": 1024}


def load(path):
    """A script of deploy/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def flink():
    return yaml.safe_load((DEPLOY / "flink/conf/config.yaml").read_text())


@functools.cache
def compose():
    return yaml.safe_load((DEPLOY / "flink/compose.yaml").read_text())


def objects():
    """(file name, object) of everything that Kubernetes gets, one-off pods too."""
    return [
        (path.name, document)
        for path in [*KUBERNETES, FILL]
        for document in yaml.safe_load_all(path.read_text())
        if document
    ]


def kind(wanted, name):
    return next(o for _, o in objects() if o["kind"] == wanted and o["metadata"]["name"] == name)


def job():
    return kind("CronJob", "dpgmm-release")["spec"]["jobTemplate"]["spec"]


def pod_template(document):
    """What a Deployment's or a Job's pods are made from; None for what makes no pods."""
    spec = document.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    return spec.get("template")


def pod_spec(document):
    return document["spec"] if document["kind"] == "Pod" else (pod_template(document) or {}).get("spec", {})


def containers(document):
    return {c["name"]: c for c in pod_spec(document).get("containers", [])}


def driver_arguments(where):
    if where == "compose":
        return compose()["services"]["driver"]["command"]
    return containers(kind("CronJob", "dpgmm-release"))["driver"]["args"]


def settings():
    """release.env."""
    lines = (DEPLOY / "flink/release.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def mebibytes(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", str(text)).groups()
    return int(number) * UNITS[unit]

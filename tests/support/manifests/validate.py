"""Validate Kubernetes manifests strictly: unknown fields are errors.

    build/deploy-tools/kubernetes/bin/python tests/support/manifests/validate.py < manifests.yaml

Kubernetes' own kinds are checked against Kubernetes' schemas, custom resources against custom_resources.yaml, which
knows the fields that this project uses. Prints a line for each document, "ok KIND" or what is wrong; exits 1 if one is
wrong. Runs in a separate environment, which has nothing of this project.
"""

import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

VERSION = "1.37"
SCHEMAS = yaml.safe_load(Path(__file__).with_name("custom_resources.yaml").read_text(encoding="utf-8"))


def closed(schema):
    """A schema in which every object forbids the fields that it does not name."""
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema:
        schema["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        schema["additionalProperties"] = False
    return schema


def validate(document):
    """Raise one of the two libraries' ValidationErrors if the document is wrong; KeyError for an unknown kind."""
    name = f"{document['apiVersion']}/{document['kind']}"
    if name not in SCHEMAS:
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.SchemaNotFoundError as error:
            raise KeyError(name) from error
        return
    spec = closed(SCHEMAS[name])
    jsonschema.Draft202012Validator(spec).validate(document["spec"])
    metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    kubernetes_validate.validate(metadata, VERSION, strict=True)
    if "containers" in document["spec"]:  # a ServingRuntime's, and those of a pod are the same
        pod = {key: document["spec"][key] for key in ("containers", "volumes")}
        kubernetes_validate.validate({**metadata, "kind": "Pod", "spec": pod}, VERSION, strict=True)


def main():
    wrong = 0
    for document in filter(None, yaml.safe_load_all(sys.stdin.read())):
        kind = document["kind"]
        try:
            validate(document)
            print(f"ok {kind}")
        except KeyError as error:
            wrong = 1
            print(f"wrong {kind}: no schema of {error}")
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            wrong = 1
            where = "/".join(map(str, error.path))
            print(f"wrong {kind} {where}: {error.message.splitlines()[0][:200]}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
